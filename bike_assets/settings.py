"""Every setting, read once from `BIKE_*` environment variables or a `.env` file.

Belongs here: what differs between a laptop, compose and the cloud, and the thresholds of every decision. Does
not belong here: acting on a setting. Nothing below this module asks which environment it is in: it is handed
resources.
"""

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bike_assets.core.drift import DriftPolicy
from bike_assets.core.errors import PermanentError
from bike_assets.core.experiment import ExperimentPolicy
from bike_assets.core.promotion import PromotionPolicy
from bike_assets.core.retraining import RetrainingPolicy
from bike_assets.sources.open_meteo import ARCHIVE_URL, FORECAST_URL, PREVIOUS_RUNS_URL
from bike_assets.sources.paris import DATASET, PORTAL
from bike_assets.sources.weather import WeatherName

REPOSITORY = Path(__file__).resolve().parent.parent

TELEMETRY_OFF = {
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "DO_NOT_TRACK": "true",  # MLflow takes "true" and ignores "1"
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Keeps every library from calling home."""

QUIET = {**TELEMETRY_OFF, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
"""And one from drawing bars into logs. What is set already stands."""

Environment = Literal["local", "compose", "prod"]
SourceName = Literal["simulator", "archive", "paris"]
AlertLevel = Literal["info", "notice", "warning", "critical"]
WeatherSetting = Literal["auto", "none", "simulator", "file", "open-meteo"]


class Settings(BaseSettings):
    """The platform's settings. `Settings()` reads the environment; arguments override it, as tests do."""

    model_config = SettingsConfigDict(
        env_prefix="BIKE_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        # A policy's bounds are variables of their own: BIKE_PROMOTION_FLOOR_R2 is promotion.floor_r2.
        env_nested_delimiter="_",
        env_nested_max_split=1,
    )

    env: Environment = Field("local", description="`local`, `compose` or `prod`")
    home: Path = Field(Path(".bike"), description="Folder of everything the platform writes locally")

    source: SourceName = Field(
        "simulator", description="Where counts come from: `simulator`, `archive` or `paris`"
    )
    data: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Files or folders of the archive source, separated by the path separator"
    )
    paris_portal: str = Field(PORTAL, description="Opendatasoft portal of the live counts (`paris`)")
    paris_dataset: str = Field(DATASET, description="Its data set")
    paris_api_key: SecretStr | None = Field(
        None, description="Key for a quota of your own; without one you share that of your address"
    )
    refetch_days: int = Field(
        14, ge=0, description="Days before yesterday that are fetched again every day, for late corrections"
    )
    simulator_seed: int = Field(7, description="Another seed is another city")
    simulator_counters: int = Field(12, ge=1, description="Counters of the simulated city")
    simulator_first_day: date = Field(date(2024, 4, 1), description="Its first local day with counts")
    simulator_last_day: date = Field(date(2024, 12, 31), description="Its last local day with counts")
    simulator_scenario: str = Field(
        "", description="What goes wrong in it: one of the scenarios of sources.md"
    )
    simulator_scenario_start: date = Field(date(2024, 12, 1), description="First local day of the scenario")

    weather: WeatherSetting = Field(
        "auto",
        description="Where weather comes from: `none`, `simulator`, `file`, `open-meteo`; `auto` is the simulator's "
        "own with the simulator, `open-meteo` with paris, and none with archive",
    )
    weather_data: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Files of observed weather (`file`), separated by the path separator"
    )
    weather_latitude: float = Field(
        48.8566, ge=-90, le=90, description="Where the weather is of, in degrees north"
    )
    weather_longitude: float = Field(2.3522, ge=-180, le=180, description="And in degrees east")
    open_meteo_archive_url: str = Field(ARCHIVE_URL, description="Open-Meteo's observed weather")
    open_meteo_forecast_url: str = Field(FORECAST_URL, description="Its forecast of today")
    open_meteo_previous_runs_url: str = Field(
        PREVIOUS_RUNS_URL, description="What it predicted on earlier days"
    )

    partitions_start: date = Field(
        date(2016, 1, 1), description="First local day that can be a partition of real counts"
    )
    bigquery_project: str = Field(
        "bike-traffic", description="Google Cloud project of the warehouse (`BIKE_ENV=prod`)"
    )
    bigquery_location: str = Field("EU", description="Where its data sets are")
    bigquery_maximum_bytes_billed: int = Field(
        10_000_000_000,
        ge=10_485_760,
        description="Bytes of one statement above which BigQuery refuses it; the whole city is under 200 MB",
    )
    bigquery_endpoint: str = Field(
        "", description="Address of an emulator of BigQuery; it is shown no credentials"
    )
    bigquery_storage_endpoint: str = Field("", description="And of its Storage Read API, as host:port")
    bundles_url: str = Field(
        "",
        pattern=r"^(gs://[a-z0-9][a-z0-9._-]+(/[^?#]*)?)?$",
        description="Bucket of Cloud Storage that bundles are put in too, as gs://bucket/folder; empty for none",
    )
    dbt_project_dir: Path = Field(REPOSITORY / "dbt_project", description="The dbt project")

    mlflow_tracking_uri: str = Field("", description="MLflow's store; by default SQLite in the home folder")
    mlflow_ui_url: str = Field("http://127.0.0.1:5000", description="Where people open MLflow")
    model_name: str = Field("bike-traffic", description="Registered model in MLflow")

    model_family: str = Field(
        "catboost", description="Family of models: a name of `FAMILIES` in `core/families.py`"
    )
    training_rows: int = Field(200_000, ge=1_000, description="Rows sampled for training")
    training_days: int = Field(400, ge=60, description="Issue dates before the training end that are used")
    training_options: Path | None = Field(
        None,
        description="JSON file of further training options, as `bike-assets tune` writes it; variables come before it",
    )
    iterations: int = Field(0, ge=0, description="Trees of the model; 0 takes the model's own default")
    seed: int = Field(20_240_101, description="Seed of training and of its sample of rows")

    baseline_ratio: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="Share of the days before the baseline window, and of a snapshot that are train_baseline",
    )
    baseline_days: int = Field(
        28, ge=0, description="Days of the baseline window, which no model learns from; 0 for none"
    )
    baseline_first: date | None = Field(
        None, description="Its first local day; by default fixed by the first training"
    )

    shadow: bool = Field(
        False,
        description="Forecast with the challenger beside the champion every day, and compare them as truth arrives",
    )
    experiment: ExperimentPolicy = Field(
        ExperimentPolicy(), description="When that comparison stops: *Decisions*"
    )

    drift_days: int = Field(28, ge=7, description="Days of the window tested for drift")
    quality_min_skill: float = Field(
        0.0, description="Skill over the mean of four weeks below which a check warns"
    )
    freshness_max_days: int = Field(
        3, ge=1, description="Working days without new counts before the check warns"
    )

    alert_discord_webhook: SecretStr | None = Field(
        None,
        description="Discord webhook that is told what happens; a secret, and nothing is sent without one",
    )
    alert_webhook: SecretStr | None = Field(
        None, description="Another address, which gets every alert as JSON; a secret too"
    )
    alert_log: bool = Field(False, description="Write every alert to the log `bike_assets.alerts`")
    alert_level: AlertLevel = Field(
        "notice",
        description="Alerts from this level on are sent: `info` (also what went well), `notice`, `warning`, `critical`",
    )
    alert_error_share: float = Field(
        0.05, gt=0, lt=1, description="Share of failed requests to the REST service above which it is alarmed"
    )
    dagster_ui_url: str = Field("http://127.0.0.1:3000", description="Where people open Dagster")
    serving_url: str = Field("", description="The REST service whose health is watched; empty watches none")
    serving_api_key: SecretStr | None = Field(
        None,
        description="API key to read its count of errors with; by default that of `<home>/serving/reader.key`",
    )
    monitoring: DriftPolicy = Field(DriftPolicy(), description="What counts as drift: *Decisions*")
    promotion: PromotionPolicy = Field(
        PromotionPolicy(), description="When a challenger replaces the champion: *Decisions*"
    )
    retraining: RetrainingPolicy = Field(RetrainingPolicy(), description="When to train again: *Decisions*")

    promoters: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Who may promote and roll back, with commas between; without one, everybody"
    )
    approvers: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Who may approve and reject challengers, with commas between; without one, everybody"
    )

    @field_validator("promoters", "approvers", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("data", "weather_data", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Steps run in other processes with other working directories.
        return value.expanduser().resolve()

    @property
    def weather_source(self) -> WeatherName:
        """Where weather comes from, `auto` resolved."""
        if self.weather != "auto":
            return self.weather
        chosen: dict[SourceName, WeatherName] = {"simulator": "simulator", "paris": "open-meteo"}
        return chosen.get(self.source, "none")

    @property
    def warehouse_path(self) -> Path:
        """The DuckDB file."""
        return self.home / "warehouse.duckdb"

    @property
    def has_warehouse(self) -> bool:
        """Whether there is a warehouse to read: a home may not be filled yet, BigQuery is always there."""
        return self.env == "prod" or self.warehouse_path.exists()

    @property
    def dbt_environment(self) -> dict[str, str]:
        """What dbt's profile reads, so that it holds no place and no bound of its own."""
        if self.env != "prod":
            return {"BIKE_DBT_TARGET": "local", "BIKE_WAREHOUSE": str(self.warehouse_path)}
        return {
            "BIKE_DBT_TARGET": "prod",
            "BIKE_BIGQUERY_PROJECT": self.bigquery_project,
            "BIKE_BIGQUERY_LOCATION": self.bigquery_location,
            "BIKE_BIGQUERY_MAXIMUM_BYTES_BILLED": str(self.bigquery_maximum_bytes_billed),
            "BIKE_BIGQUERY_ENDPOINT": self.bigquery_endpoint,
            # An emulator asks for a token and does not look at it.
            "BIKE_BIGQUERY_METHOD": "oauth-secrets" if self.bigquery_endpoint else "oauth",
            "BIKE_BIGQUERY_TOKEN": "none" if self.bigquery_endpoint else "",
        }

    @property
    def tracking_uri(self) -> str:
        """Where MLflow keeps runs and the registry."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def artifacts_dir(self) -> Path:
        """MLflow's artifacts, when its store is local."""
        return self.home / "mlartifacts"

    @property
    def downloads_dir(self) -> Path:
        """What live sources gave and will not change any more."""
        return self.home / "downloads"

    @property
    def bundles_dir(self) -> Path:
        """Champion bundles, one folder each."""
        return self.home / "bundles"

    @property
    def keys_dir(self) -> Path:
        """Signing keys of the bundles."""
        return self.home / "keys"

    @property
    def audit_dir(self) -> Path:
        """The signed head of the audit log, and the locks of log and championship."""
        return self.home / "audit"

    @property
    def reports_dir(self) -> Path:
        """Drift reports, one folder an issue date."""
        return self.home / "reports"

    @property
    def serving_key_file(self) -> Path:
        """The key that a REST service over this home makes at its first start."""
        return self.home / "serving" / "reader.key"

    @property
    def dbt_artifacts_dir(self) -> Path:
        """What dbt parsed, compiled and logged."""
        return self.home / "dbt"

    @property
    def snapshots_dir(self) -> Path:
        """Snapshots of the tables."""
        return self.home / "snapshots"

    @property
    def dagster_home(self) -> Path:
        """Dagster's own storage."""
        return self.home / "dagster"

    @property
    def alerts_on(self) -> bool:
        """Whether the sensors that send alerts run by themselves: on a laptop where there is someone to tell."""
        webhooks = (self.alert_discord_webhook, self.alert_webhook)
        return self.automation_on or any(url is not None and url.get_secret_value() for url in webhooks)

    @property
    def automation_on(self) -> bool:
        """Whether schedules and sensors start running by themselves: never on a laptop."""
        return self.env != "local"


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process, with telemetry switched off for every library loaded after.

    Raises:
        PermanentError: a value is not allowed; the message names the variable and the choices.
    """
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        variable = "BIKE_" + "_".join(str(part) for part in first["loc"]).upper()
        raise PermanentError(
            f"{variable}={first['input']!r}: {first['msg']}; set {variable} to an allowed value or unset it"
        ) from None
