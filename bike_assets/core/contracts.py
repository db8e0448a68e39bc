"""The table contracts: columns, types, units, ranges and keys of every table, each stated once.

Belongs here: what a table promises its readers. Does not belong here: how a table is computed or stored, and
statistical quality rules (see `bike_assets.checks`).

Every timestamp is UTC with microseconds. `service_date` is the partition key of every daily table: the local
day of the counted hour in raw and cleaned tables, the issue date in tables about forecasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import polars as pl

from bike_assets.core.errors import ContractError

UTC_TIMESTAMP = pl.Datetime("us", "UTC")
"""The one timestamp type of the platform."""


@dataclass(frozen=True)
class Column:
    """One column's promise: its type, its unit or meaning, whether it may be null, and its closed range."""

    name: str
    dtype: pl.DataType | type[pl.DataType]
    description: str
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class TableContract:
    """What one table promises. `schema.name` is a DuckDB schema and table, or a BigQuery dataset and table."""

    schema: str
    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def relation(self) -> str:
        """`schema.name`, as it is written in SQL."""
        return f"{self.schema}.{self.name}"

    @property
    def column_names(self) -> list[str]:
        """Names in table order."""
        return [column.name for column in self.columns]

    @cached_property
    def polars_schema(self) -> pl.Schema:
        """Names and types in table order."""
        return pl.Schema({column.name: column.dtype for column in self.columns})

    def empty(self) -> pl.DataFrame:
        """A frame of no rows that keeps the contract."""
        return pl.DataFrame(schema=self.polars_schema)

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with the contract's columns in order and in type, ready to be written.

        Raises:
            ContractError: a column is missing, cannot be converted, or the result breaks the contract.
        """
        missing = [name for name in self.column_names if name not in frame.columns]
        if missing:
            raise ContractError(f"{self.relation}: column {', '.join(missing)} is missing")
        try:
            frame = frame.select(
                pl.col(column.name).cast(column.dtype, strict=True) for column in self.columns
            )
        except pl.exceptions.PolarsError as error:
            raise ContractError(f"{self.relation}: {str(error).splitlines()[0]}") from error
        self.check(frame)
        return frame

    def check(self, frame: pl.DataFrame) -> None:
        """Prove that a frame keeps the contract.

        Raises:
            ContractError: naming every broken rule with the number of rows that break it.
        """
        faults = self.violations(frame)
        if faults:
            raise ContractError(f"{self.relation}: {'; '.join(faults)}")

    def violations(self, frame: pl.DataFrame) -> list[str]:
        """Every broken rule in words, empty where the contract holds."""
        faults = _schema_faults(frame, self)
        if faults:
            return faults
        for column in self.columns:
            values = frame.get_column(column.name)
            if not column.nullable and (nulls := values.null_count()):
                faults.append(f"{column.name} is null in {nulls:,} rows")
            if values.dtype.is_float() and (odd := int((~values.is_finite()).sum())):
                faults.append(f"{column.name} is NaN or infinite in {odd:,} rows")
            if column.minimum is not None and (below := int((values < column.minimum).sum())):
                faults.append(f"{column.name} is below {column.minimum:g} in {below:,} rows")
            if column.maximum is not None and (above := int((values > column.maximum).sum())):
                faults.append(f"{column.name} is above {column.maximum:g} in {above:,} rows")
        if self.key and (repeated := frame.height - frame.select(self.key).n_unique()):
            faults.append(f"key ({', '.join(self.key)}) repeats in {repeated:,} rows")
        return faults


def _schema_faults(frame: pl.DataFrame, contract: TableContract) -> list[str]:
    faults = []
    for column in contract.columns:
        if column.name not in frame.columns:
            faults.append(f"column {column.name} is missing")
        elif frame.schema[column.name] != column.dtype:
            faults.append(f"column {column.name} is {frame.schema[column.name]}, not {column.dtype}")
    return faults


RAW_COUNTS = TableContract(
    schema="bike_traffic_raw",
    name="raw_counts",
    key=(),  # exports overlap: the same counter and hour may stand here several times, and nothing is dropped
    columns=(
        Column("service_date", pl.Date, "Local day of the counted hour"),
        Column("counter_id", pl.String, "Counter as the source names it, site and channel"),
        Column("counter_name", pl.String, "Name of the counter, with its direction", nullable=True),
        Column("site_id", pl.String, "Counting site", nullable=True),
        Column("site_name", pl.String, "Name of the counting site", nullable=True),
        Column("ts_utc", UTC_TIMESTAMP, "Start of the counted hour"),
        Column("hourly_count", pl.Float64, "Bicycles in the hour, as published", nullable=True),
        Column("latitude", pl.Float64, "Degrees north, WGS 84", nullable=True, minimum=-90, maximum=90),
        Column("longitude", pl.Float64, "Degrees east, WGS 84", nullable=True, minimum=-180, maximum=180),
        Column("installation_date", pl.Date, "Day the site was installed", nullable=True),
        Column("source", pl.String, "Source that gave the row: simulator, archive, paris"),
        Column("source_file", pl.String, "File or request the row came from"),
        Column(
            "published_until",
            UTC_TIMESTAMP,
            "Newest hour in that file: the later export corrects the earlier",
        ),
        Column("is_stray", pl.Boolean, "On a day when hardly any counter of that file reported"),
        Column("ingested_at", UTC_TIMESTAMP, "When the platform first wrote the row in this form"),
        Column("content_hash", pl.String, "SHA-256 of the partition's content as the source gave it"),
    ),
)

RAW_WEATHER = TableContract(
    schema="bike_traffic_raw",
    name="raw_weather",
    key=("service_date", "ts_utc", "kind"),
    columns=(
        Column("service_date", pl.Date, "Issue date of a forecast; local day of an observed hour"),
        Column("ts_utc", UTC_TIMESTAMP, "Start of the hour the weather is of"),
        Column("kind", pl.String, "observed, or forecast: what was expected on the issue date"),
        Column("issued_at", UTC_TIMESTAMP, "When the forecast was issued or the observation published"),
        Column("temperature_c", pl.Float64, "Air temperature, °C", nullable=True, minimum=-50, maximum=60),
        Column("rain_mm", pl.Float64, "Rain in the hour, mm", nullable=True, minimum=0, maximum=300),
        Column("wind_kmh", pl.Float64, "Wind speed at 10 m, km/h", nullable=True, minimum=0, maximum=400),
        Column("source", pl.String, "Source that gave the row: simulator, file, open-meteo"),
        Column("ingested_at", UTC_TIMESTAMP, "When the platform first wrote the row in this form"),
        Column("content_hash", pl.String, "SHA-256 of the partition's content as the source gave it"),
    ),
)

CALENDAR_HOURS = TableContract(
    schema="bike_traffic_raw",
    name="calendar_hours",
    key=("ts_utc",),
    columns=(
        Column("service_date", pl.Date, "Local day of the hour"),
        Column("ts_utc", UTC_TIMESTAMP, "Start of the hour"),
        Column("local_hour", pl.Int32, "Hour of the local wall clock", minimum=0, maximum=23),
        Column("is_repeated", pl.Boolean, "The local clock shows this hour twice on this day"),
    ),
)

CLEANED_COUNTS = TableContract(
    schema="bike_traffic_analytics",
    name="cleaned_counts",
    key=("counter_id", "ts_utc"),
    columns=(
        Column("service_date", pl.Date, "Local day of the counted hour"),
        Column("counter_id", pl.String, "Counter"),
        Column("ts_utc", UTC_TIMESTAMP, "Start of the counted hour"),
        Column("local_hour", pl.Int32, "Hour of the local wall clock", minimum=0, maximum=23),
        Column(
            "hourly_count",
            pl.Int64,
            "Bicycles in the hour; half of what was published where that held two hours",
            nullable=True,
            minimum=0,
        ),
        Column("published_count", pl.Int64, "Bicycles as published last", nullable=True, minimum=0),
        Column("is_merged_hour", pl.Boolean, "Half of a row that held both hours of the autumn clock change"),
        Column("is_outage", pl.Boolean, "Part of a run of zeros of a day or more"),
        Column("is_spike", pl.Boolean, "Impossible for this counter, by its own four weeks before"),
        Column("is_stuck", pl.Boolean, "Part of a run of equal counts that no traffic gives"),
        Column(
            "revisions",
            pl.Int32,
            "How many times another value than before was published, the first included",
            minimum=1,
        ),
        Column("published_until", UTC_TIMESTAMP, "Newest hour in the export the value came from"),
    ),
)

QUARANTINED_COUNTS = TableContract(
    schema="bike_traffic_analytics",
    name="quarantined_counts",
    key=(),  # what is wrong may be wrong twice
    columns=(
        Column("service_date", pl.Date, "Local day of the row"),
        Column("counter_id", pl.String, "Counter"),
        Column("ts_utc", UTC_TIMESTAMP, "Hour the row claims"),
        Column("hourly_count", pl.Float64, "Bicycles, as published", nullable=True),
        Column("reason", pl.String, "Why the row is not among the cleaned counts"),
        Column("source", pl.String, "Source that gave the row"),
        Column("source_file", pl.String, "File or request the row came from"),
    ),
)

COUNTERS = TableContract(
    schema="bike_traffic_analytics",
    name="counters",
    key=("counter_id",),
    columns=(
        Column("counter_id", pl.String, "Counter"),
        Column("counter_name", pl.String, "Newest name of the counter", nullable=True),
        Column("site_id", pl.String, "Counting site", nullable=True),
        Column("site_name", pl.String, "Newest name of the counting site", nullable=True),
        Column("latitude", pl.Float64, "Degrees north, WGS 84", nullable=True, minimum=-90, maximum=90),
        Column("longitude", pl.Float64, "Degrees east, WGS 84", nullable=True, minimum=-180, maximum=180),
        Column("first_seen", UTC_TIMESTAMP, "Oldest counted hour"),
        Column("last_seen", UTC_TIMESTAMP, "Newest counted hour"),
        Column("hours", pl.Int64, "Counted hours", minimum=1),
        Column("mean_hourly_count", pl.Float64, "Bicycles an hour over its life", nullable=True, minimum=0),
        # Null in a champion's bundle, which knows counters by their counts alone.
        Column("site_key", pl.String, "The site, also where one name has two ids", nullable=True),
        Column("counters_at_site", pl.Int64, "Counters that stand or stood there", nullable=True, minimum=1),
        Column("last_counted", UTC_TIMESTAMP, "Newest hour with a count that is no outage", nullable=True),
        Column("status", pl.String, "active, new, silent or retired", nullable=True),
        Column(
            "coverage",
            pl.Float64,
            "Share of the hours of its life that were counted, outages not",
            nullable=True,
            minimum=0,
            maximum=1,
        ),
        Column("replaced_by", pl.String, "Counter that took over its name and site", nullable=True),
    ),
)

EXPORT_DIFFERENCES = TableContract(
    schema="bike_traffic_analytics",
    name="export_differences",
    key=(),  # a stray row has no earlier file
    columns=(
        Column(
            "difference",
            pl.String,
            "corrected, vanished counter, missing hours, new counter, added hours or stray rows",
        ),
        Column("earlier_file", pl.String, "Export that was published first", nullable=True),
        Column("later_file", pl.String, "Export that was published later, or has the stray rows"),
        Column("counter_id", pl.String, "Counter"),
        Column("counter_name", pl.String, "Name of the counter", nullable=True),
        Column("hours", pl.Int64, "Hours that differ", minimum=1),
        Column("first_hour", UTC_TIMESTAMP, "Oldest of them"),
        Column("last_hour", UTC_TIMESTAMP, "Newest of them"),
        Column("count_before", pl.Int64, "Bicycles in these hours as published first", nullable=True),
        Column("count_after", pl.Int64, "Bicycles in these hours as published later", nullable=True),
    ),
)

FILLED_COUNTS = TableContract(
    schema="bike_traffic_analytics",
    name="filled_counts",
    key=("service_date", "counter_id", "ts_utc"),
    columns=(
        Column("service_date", pl.Date, "Local day of the hour"),
        Column("counter_id", pl.String, "Counter"),
        Column("ts_utc", UTC_TIMESTAMP, "Start of the hour"),
        Column("local_hour", pl.Int32, "Hour of the local wall clock", minimum=0, maximum=23),
        Column("hourly_count", pl.Int64, "Bicycles in the hour, as published last", nullable=True, minimum=0),
        Column(
            "count_filled",
            pl.Float64,
            "The same, with gaps, outages and spikes estimated; knows the future: never for forecasts",
            nullable=True,
            minimum=0,
        ),
        Column("fill_method", pl.String, "published, neighbours, profile, or none"),
    ),
)

COUNTER_HEALTH = TableContract(
    schema="bike_traffic_analytics",
    name="counter_health",
    key=("service_date", "counter_id"),
    columns=(
        Column("service_date", pl.Date, "Local day judged, by what was known that evening"),
        Column("counter_id", pl.String, "Counter"),
        Column("state", pl.String, "alive, silent, dead, stuck or drifting"),
        Column("known_hours", pl.Int32, "Hours of the day with a count", minimum=0, maximum=24),
        Column("silent_days", pl.Int32, "Days since the last count, 0 on a day with one", minimum=0),
        Column("daily_count", pl.Float64, "Bicycles counted that day", nullable=True, minimum=0),
        Column(
            "expected_count",
            pl.Float64,
            "Bicycles expected in its known hours: own median of eight weeks times the city's move",
            nullable=True,
            minimum=0,
        ),
        Column(
            "change",
            pl.Float64,
            "Counted over expected, seven days: 0.5 where half as many are counted",
            nullable=True,
            minimum=0,
        ),
        Column(
            "deviation",
            pl.Float64,
            "Logarithm of the change in the counter's robust standard deviations",
            nullable=True,
        ),
        Column(
            "stuck_hours", pl.Int32, "Longest run of equal counts above 0 that reached the day", minimum=0
        ),
        Column("reason", pl.String, "Why, in words"),
    ),
)

COUNTER_INCIDENTS = TableContract(
    schema="monitoring_audit",
    name="counter_incidents",
    key=("service_date", "counter_id"),
    columns=(
        Column("service_date", pl.Date, "Day it opened: the first that was not healthy"),
        Column("counter_id", pl.String, "Counter"),
        Column("closed_on", pl.Date, "First healthy day after it, null while it lasts", nullable=True),
        Column(
            "status", pl.String, "open, closed, or removed: silent for so long that it is not expected back"
        ),
        Column("state", pl.String, "State of most of its days"),
        Column("days", pl.Int32, "Days that were not healthy", minimum=1),
        Column("last_bad_day", pl.Date, "The newest of them"),
        Column("reason", pl.String, "What was said of that day"),
    ),
)

PREDICTIONS = TableContract(
    schema="bike_traffic_predictions",
    name="predictions",
    key=("service_date", "counter_id", "target_ts"),
    columns=(
        Column(
            "service_date", pl.Date, "Issue date: forecast at 07:00 local from counts up to the day before"
        ),
        Column("counter_id", pl.String, "Counter"),
        Column("target_ts", UTC_TIMESTAMP, "Start of the hour forecast"),
        Column("horizon", pl.Int32, "Days ahead: 1 is the issue date itself", minimum=1, maximum=7),
        Column("forecast", pl.Float64, "Expected bicycles in the hour", minimum=0),
        Column("lower_80", pl.Float64, "Lower end of the 80 % interval", minimum=0),
        Column("upper_80", pl.Float64, "Upper end of the 80 % interval", minimum=0),
        Column("lower_90", pl.Float64, "Lower end of the 90 % interval", minimum=0),
        Column("upper_90", pl.Float64, "Upper end of the 90 % interval", minimum=0),
        Column(
            "mean4",
            pl.Float64,
            "Baseline: mean of the last four same hours of the week known at issue",
            minimum=0,
        ),
        Column(
            "seasonal_naive", pl.Float64, "Baseline: the last same hour of the week known at issue", minimum=0
        ),
        Column("basis", pl.String, "history, or neighbours where the counter has too little of its own"),
        Column("model_name", pl.String, "Registered model"),
        Column("model_version", pl.String, "Version of the registered model"),
        Column("run_id", pl.String, "MLflow run that trained it"),
    ),
)


CALIBRATIONS = TableContract(
    schema="bike_traffic_predictions",
    name="calibrations",
    key=("service_date",),
    columns=(
        Column("service_date", pl.Date, "Issue date"),
        Column("run_id", pl.String, "MLflow run of the model whose errors these are"),
        Column("rows", pl.Int64, "Errors behind it, of hours counted by then", minimum=0),
        Column("calibration", pl.String, "JSON: quantiles of scaled errors, and the factor of each counter"),
    ),
)


SHADOW_PREDICTIONS = replace(PREDICTIONS, name="shadow_predictions")
"""What the challenger would have forecast, beside what the champion did."""

SHADOW_CALIBRATIONS = replace(CALIBRATIONS, name="shadow_calibrations")


EXPERIMENT_RESULTS = TableContract(
    schema="monitoring_audit",
    name="experiment_results",
    key=("service_date",),
    columns=(
        Column("service_date", pl.Date, "Day the comparison was made for, from truth up to the day before"),
        Column("champion_version", pl.String, "Version that served"),
        Column("challenger_version", pl.String, "Version that was compared with it"),
        Column("verdict", pl.String, "continue, challenger_better, champion_better or no_difference"),
        Column("reasons", pl.String, "Why, in words"),
        Column("days", pl.Int64, "Days of truth behind it", minimum=0),
        Column("hours", pl.Int64, "Forecasts of either model that were compared", minimum=0),
        Column(
            "effect",
            pl.Float64,
            "The challenger's gain: share of the champion's absolute error",
            nullable=True,
        ),
        Column("lower", pl.Float64, "Lower end of its interval, valid on every day", nullable=True),
        Column("upper", pl.Float64, "Upper end of its interval", nullable=True),
        Column("champion_wape", pl.Float64, "WAPE of the champion on these days", nullable=True, minimum=0),
        Column("challenger_wape", pl.Float64, "WAPE of the challenger", nullable=True, minimum=0),
    ),
)


RETRAINING_DECISIONS = TableContract(
    schema="monitoring_audit",
    name="retraining_decisions",
    key=("service_date",),
    columns=(
        Column("service_date", pl.Date, "Day the decision was taken for"),
        Column("retrain", pl.Boolean, "Whether a training is asked for"),
        Column("decision", pl.String, "Row of the decision matrix that applied"),
        Column("reasons", pl.String, "Why, in words"),
        Column("r2", pl.Float64, "Realised R² of the champion in the window", nullable=True),
        Column(
            "drift_share",
            pl.Float64,
            "Share of tested columns that drifted",
            nullable=True,
            minimum=0,
            maximum=1,
        ),
        Column("truth_rows", pl.Int64, "Forecast hours with truth in the window", minimum=0),
        Column("model_version", pl.String, "Champion that was judged", nullable=True),
    ),
)


AUDIT_LOG = TableContract(
    schema="monitoring_audit",
    name="logs",
    key=("sequence",),
    columns=(
        Column("sequence", pl.Int64, "Number of the row, from 1 without gaps", minimum=1),
        Column("timestamp", UTC_TIMESTAMP, "When it was written"),
        Column("service_date", pl.Date, "Local day it is about"),
        Column("event", pl.String, "What happened: an `Event` of core/audit.py"),
        Column("actor", pl.String, "Who decided: a person, or automation"),
        Column("executed_by", pl.String, "User of the operating system that ran it", nullable=True),
        Column("reason", pl.String, "Why, in words"),
        Column("operation_id", pl.String, "Ties the rows of one change together", nullable=True),
        Column("dagster_run_id", pl.String, "Dagster run that wrote it", nullable=True),
        Column("env", pl.String, "local, compose or prod", nullable=True),
        Column("model_name", pl.String, "Registered model", nullable=True),
        Column("model_version", pl.String, "Version it is about", nullable=True),
        Column("semantic_version", pl.String, "Its semantic version", nullable=True),
        Column("replaced_version", pl.String, "Champion before, or compared with", nullable=True),
        Column("bundle_id", pl.String, "Bundle that serves from now on", nullable=True),
        Column("data_hash", pl.String, "Snapshot that the version learned from", nullable=True),
        Column("git_commit", pl.String, "Code that trained it", nullable=True),
        Column("run_id", pl.String, "MLflow run of the version", nullable=True),
        Column("model_uri", pl.String, "Where MLflow keeps it", nullable=True),
        Column(
            "deployment_decision", pl.String, "Answer of the promotion or retraining policy", nullable=True
        ),
        Column("policy", pl.String, "JSON: the thresholds that were applied", nullable=True),
        Column("drift_detected", pl.Boolean, "Whether the drift share reached its warning", nullable=True),
        Column("drift_share", pl.Float64, "Share of tested columns that drifted", nullable=True),
        Column("r2", pl.Float64, "Realised R² of the champion", nullable=True),
        Column("rmse", pl.Float64, "Its realised RMSE, in bicycles an hour", nullable=True),
        Column("fine_tune_triggered", pl.Boolean, "Whether a training was asked for", nullable=True),
        Column("fine_tune_success", pl.Boolean, "Whether the training ended well", nullable=True),
        Column(
            "double_evaluation_enabled", pl.Boolean, "Whether both windows could be scored", nullable=True
        ),
        Column("baseline_regression", pl.Boolean, "Whether the challenger is below the floor", nullable=True),
        Column("r2_baseline", pl.Float64, "R² of the challenger on the baseline window", nullable=True),
        Column("r2_current", pl.Float64, "R² of the challenger on the current window", nullable=True),
        Column("r2_train", pl.Float64, "R² on the days its training held out", nullable=True),
        Column(
            "champion_r2_baseline", pl.Float64, "R² of the champion on the baseline window", nullable=True
        ),
        Column("champion_r2_current", pl.Float64, "R² of the champion on the current window", nullable=True),
        Column(
            "model_improvement", pl.Float64, "Gain in R² over the champion, current window", nullable=True
        ),
        Column("p_value", pl.Float64, "Of the paired test over days", nullable=True),
        Column("days_compared", pl.Int32, "Days of the current window", nullable=True),
        Column("error_message", pl.String, "What went wrong", nullable=True),
        Column("previous_hash", pl.String, "Hash of the row before"),
        Column("hash", pl.String, "SHA-256 of this row and the one before"),
        Column("signature", pl.String, "Ed25519 over the hash"),
    ),
)


def features_contract(feature_columns: Sequence[str]) -> TableContract:
    """The contract of the feature table, whose feature columns the feature code names.

    Args:
        feature_columns: names of the model's inputs, all 32-bit floats; null where nothing was known.
    """
    return TableContract(
        schema="bike_traffic_features",
        name="features",
        key=("service_date", "counter_id", "target_ts"),
        columns=(
            Column("service_date", pl.Date, "Issue date"),
            Column("counter_id", pl.String, "Counter"),
            Column("target_ts", UTC_TIMESTAMP, "Start of the hour to forecast"),
            Column("horizon", pl.Int32, "Days ahead: 1 is the issue date itself", minimum=1, maximum=7),
            *(
                Column(name, pl.Float32, "Model input, known at issue time", nullable=True)
                for name in feature_columns
            ),
        ),
    )
