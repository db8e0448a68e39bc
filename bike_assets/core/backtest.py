"""Backtests: forecasts of a past period exactly as they would have been issued, and their accuracy by group.

Belongs here: when which model is trained, what it may see, which hours are scored, and how the scored hours are
grouped. Does not belong here: the measures (`bike_assets.core.metrics`), reading counts, keeping results, reports
(`bike_assets.backtest`).

An origin is one training and the issue dates whose forecasts its model makes, until the next training. A model sees
counts up to the day before its first issue date and nothing later; a forecast of issue date D sees features of counts
before D. Both are functions of the counts as published last: a correction that arrived after D is already in them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Final, Literal

import polars as pl

from bike_assets.core.affluence import with_affluence
from bike_assets.core.calendar import LOCAL_TZ, calendar_table, days_between
from bike_assets.core.errors import PermanentError
from bike_assets.core.families import family_of
from bike_assets.core.features import WARM_UP_DAYS, build_features, sample_rows
from bike_assets.core.intervals import ERROR_COLUMNS, WINDOW_DAYS, target_day
from bike_assets.core.metrics import accuracy_table, join_truth, mase_scale
from bike_assets.core.model import Forecaster, make_forecaster
from bike_assets.core.training import TrainConfig, day_shares, rows_wanted
from bike_assets.core.weather import observed_as_forecast

Retrain = Literal["none", "monthly"]

WeatherMode = Literal["none", "known", "observed"]
"""What models are told of the weather: nothing; what each issue date's own forecast said; what was observed
afterwards, as if every forecast had been perfect."""

BASELINES: Final = ("mean_of_four_weeks", "seasonal_naive")
"""Families that every backtest runs beside those asked for."""

CHUNK_DAYS: Final = 28
"""Issue dates whose features are made at a time: about half a million rows of a whole city, 200 MB. Each time the eight
weeks before them are looked at, so that few and large parts are faster."""

THREADS: Final = 2
"""Parts made side by side: most of a part is numpy, which lets another thread work."""

ROW_SETS: Final = ("all", "trusted")
"""`all`: every counted hour. `trusted`: without those of `FLAGS`."""

FLAGS: Final = ("is_outage", "is_spike", "is_stuck")
"""Columns of cleaned counts that say an hour was not counted rightly."""

GROUPINGS: Final[dict[str, tuple[str, ...]]] = {
    "overall": (),
    "horizon": ("horizon",),
    "month": ("month",),
    "month and horizon": ("month", "horizon"),
    "day": ("day_kind",),
    "weekday": ("weekday",),
    "holiday": ("holiday",),
    "hour": ("hour",),
    "hour band": ("hour_band",),
    "weekday and hour": ("weekday", "hour"),
    "level": ("level",),
    "counter": ("counter_id",),
    "counter and month": ("counter_id", "month"),
}
"""How scored hours are grouped, by the name the reports use."""

NO_HISTORY: Final = "no history"
"""Level of a counter that training had not seen."""

_LEVELS: Final = ((10.0, "under 10"), (30.0, "10 to 30"), (100.0, "30 to 100"))
_HOUR_BANDS: Final = (
    (6, "00–05 night"),
    (11, "06–10 morning"),
    (16, "11–15 midday"),
    (20, "16–19 evening"),
)
_WEEKDAYS: Final = ("1 Mon", "2 Tue", "3 Wed", "4 Thu", "5 Fri", "6 Sat", "7 Sun")
_DAY: Final = timedelta(days=1)

_COUNT_COLUMNS: Final = (
    "service_date",
    "counter_id",
    "ts_utc",
    "local_hour",
    "hourly_count",
)
COUNT_COLUMNS: Final = (*_COUNT_COLUMNS, *FLAGS)
"""Columns of cleaned counts that a backtest reads. `is_believable` stands beside them: whether a training may learn
from the hour."""


@dataclass(frozen=True)
class Origin:
    """One training and the issue dates of its model.

    Attributes:
        train_from: first issue date whose features are trained on.
        train_until: last local day of counts that training sees.
        first: first issue date.
        last: last issue date.
    """

    train_from: date
    train_until: date
    first: date
    last: date

    @property
    def issue_dates(self) -> list[date]:
        """Every day a forecast is issued on."""
        return days_between(self.first, self.last)


@dataclass(frozen=True)
class BacktestConfig:
    """What is backtested.

    Attributes:
        first: first issue date.
        last: last issue date, and last local day whose hours are scored.
        train_until: last local day of counts that the first training sees; the day before `first` by default.
        retrain: `none` trains once; `monthly` also on the first of every month, on counts up to the day before.
        window_days: issue dates before each training that are trained on; None takes all (an expanding window).
        families: families of models, by name; the baselines run too.
        weather: what models are told of the weather.
        training: how each is trained.

    Raises:
        PermanentError: a window ends before it begins, or training would see what is scored.
    """

    first: date
    last: date
    train_until: date | None = None
    retrain: Retrain = "none"
    window_days: int | None = None
    families: tuple[str, ...] = ("catboost",)
    weather: WeatherMode = "known"
    training: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise PermanentError(f"backtest: the period {self.first} to {self.last} ends before it begins")
        if self.train_until is not None and self.train_until >= self.first:
            raise PermanentError(
                f"backtest: a model trained on counts up to {self.train_until} would be scored on its own training "
                f"from {self.first} on; let training end before the period"
            )
        if self.window_days is not None and self.window_days < 1:
            raise PermanentError(f"backtest: a window of {self.window_days} days; give at least 1")
        for family in self.families:
            family_of(family)

    @property
    def all_families(self) -> tuple[str, ...]:
        """Those asked for and the baselines, each once."""
        return tuple(dict.fromkeys((*self.families, *BASELINES)))


def plan_origins(config: BacktestConfig, history_from: date) -> tuple[Origin, ...]:
    """When models are trained, and on which days each forecasts.

    Args:
        config: the backtest.
        history_from: first local day with counts; the first issue date that is trained on has
            `WARM_UP_DAYS` of them before it.

    Raises:
        PermanentError: there is no history to train on before the first origin.
    """
    starts = [config.first]
    if config.retrain == "monthly":
        starts += [day for day in days_between(config.first, config.last)[1:] if day.day == 1]
    ends = [*(start - _DAY for start in starts[1:]), config.last]
    origins = []
    for start, end in zip(starts, ends, strict=True):
        until = config.train_until if config.train_until and start == config.first else start - _DAY
        begin = history_from + WARM_UP_DAYS * _DAY
        if config.window_days is not None:
            begin = max(begin, until - (config.window_days - 1) * _DAY)
        if begin > until:
            raise PermanentError(
                f"backtest: counts begin on {history_from}, and training up to {until} needs more than "
                f"{WARM_UP_DAYS} days of them before; begin the period later or give older counts"
            )
        origins.append(Origin(begin, until, start, end))
    return tuple(origins)


@dataclass(frozen=True)
class TrainingData:
    """What the models of one origin learn from.

    Attributes:
        features: a sample of rows of the features of the training's issue dates.
        shares: which share of each issue date's rows that is.
        truth: believable counts up to the end of training.
        counters: counter_id, mase_scale, mean_count (bicycles an hour) of those counts.
    """

    features: pl.DataFrame
    shares: Mapping[date, float]
    truth: pl.DataFrame
    counters: pl.DataFrame


def told_weather(
    weather: pl.DataFrame | None, origins: Sequence[Origin], mode: WeatherMode
) -> pl.DataFrame | None:
    """The weather that features of these origins are built from.

    Args:
        weather: rows of `RAW_WEATHER`; None where there are none.
        origins: whose issue dates, of training and of the forecasts.
        mode: what of it models are told.
    """
    if weather is None or weather.is_empty() or mode == "none":
        return None
    if mode == "known":
        return weather
    days = days_between(min(o.train_from for o in origins), max(o.last for o in origins))
    return observed_as_forecast(weather, days)


def training_data(
    counts: pl.DataFrame,
    origin: Origin,
    config: TrainConfig,
    weather: pl.DataFrame | None = None,
    earlier: TrainingData | None = None,
) -> TrainingData:
    """What training on the evening of `origin.train_until` would find.

    Args:
        counts: cleaned counts, `COUNT_COLUMNS` and is_believable; what is later than the origin is left out here.
        origin: the training.
        config: `max_rows` and `seed` choose the sample.
        weather: what `told_weather` returns.
        earlier: data of an earlier origin with the same counts, config and weather. What features of a day are does not
            change with what is counted later, so its rows are thinned and not made again.
    """
    known = counts.filter(pl.col("service_date") <= origin.train_until)
    days = days_between(origin.train_from, origin.train_until)
    counters = known["counter_id"].n_unique()
    # A little more than needed: not every counter has rows on every day, and `fit` thins to the exact size.
    shares = day_shares(days, 7 * 24 * counters, 1.2 * rows_wanted(counters, config), config)
    made = earlier.shares if earlier else {}
    kept = [day for day in days if made.get(day, 0.0) >= shares[day]]
    missing = sorted(set(days) - set(kept))
    sampled = [earlier.features.filter(pl.col("service_date").is_in(kept))] if earlier else []
    with ThreadPoolExecutor(THREADS) as pool:
        sampled += pool.map(
            lambda part: sample_rows(build_features(known, part, weather=weather), shares, config.seed),
            _parts(missing),
        )
    truth = known.filter("is_believable")
    means = truth.group_by("counter_id").agg(mean_count=pl.col("hourly_count").mean()).sort("counter_id")
    return TrainingData(
        features=sample_rows(pl.concat(sampled), shares, config.seed),
        shares=shares,
        truth=truth,
        counters=means.join(mase_scale(truth), on="counter_id", how="left", maintain_order="left"),
    )


def fit(family: str, data: TrainingData, config: TrainConfig) -> Forecaster:
    """Train one family on an origin's data."""
    rows = rows_wanted(data.counters.height, config)
    return make_forecaster(family, replace(config, max_rows=rows)).fit(data.features, data.truth)


def issue(
    forecaster: Forecaster,
    counts: pl.DataFrame,
    origin: Origin,
    data: TrainingData,
    weather: pl.DataFrame | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """The forecasts of an origin's issue dates beside what was counted, for every hour that was counted.

    Args:
        forecaster: trained on `data`.
        counts: cleaned counts, `COUNT_COLUMNS`, up to the last day to be scored.
        origin: whose issue dates.
        data: the origin's training data.
        weather: what `told_weather` returns.
        progress: is told how many issue dates are done, a few at a time.

    Returns:
        service_date, counter_id, target_ts, horizon, forecast, the ends of the intervals, mean4, seasonal_naive,
        hourly_count (truth), is_trusted, mase_scale, mean_count, threshold and high_probability (null
        where training had not seen the counter). Numbers are 32-bit floats.
    """
    trust = counts.select("counter_id", target_ts="ts_utc", is_trusted=~pl.any_horizontal(FLAGS))
    parts = []
    errors = forecaster.holdout.select(ERROR_COLUMNS)
    for days in _parts(origin.issue_dates):
        issued, _ = forecaster.issue(build_features(counts, days, weather=weather), counts, errors)
        errors = pl.concat([errors, join_truth(issued, counts).select(ERROR_COLUMNS)])
        errors = errors.filter(target_day() > days[-1] - WINDOW_DAYS * _DAY)
        predictions = with_affluence(issued, forecaster.affluence)
        scored = (
            join_truth(predictions, counts)
            .join(trust, on=["counter_id", "target_ts"], how="left", maintain_order="left")
            .join(data.counters, on="counter_id", how="left", maintain_order="left")
        )
        parts.append(scored.with_columns(pl.selectors.float().cast(pl.Float32)))
        progress(len(days))
    return pl.concat(parts)


def with_groups(scored: pl.LazyFrame, days: Sequence[date]) -> pl.LazyFrame:
    """Scored hours with the columns of `GROUPINGS`, all of the target hour on the local clock.

    Args:
        scored: what `issue` returns.
        days: every local day that a target may lie on.
    """
    calendar = (
        calendar_table(days)
        .lazy()
        .select(
            day="service_date",
            weekday=pl.col("weekday").replace_strict(dict(enumerate(_WEEKDAYS)), return_dtype=pl.String),
            day_kind=pl.when(pl.col("weekday") >= 5).then(pl.lit("weekend")).otherwise(pl.lit("weekday")),
            holiday=pl.when("is_public_holiday")
            .then(pl.lit("public holiday"))
            .when("is_bridge_day")
            .then(pl.lit("bridge day"))
            .when("is_school_holiday")
            .then(pl.lit("school holiday"))
            .otherwise(pl.lit("ordinary")),
        )
    )
    local = pl.col("target_ts").dt.convert_time_zone(LOCAL_TZ)
    band = pl.lit("20–23 late")
    for end, name in reversed(_HOUR_BANDS):
        band = pl.when(local.dt.hour() < end).then(pl.lit(name)).otherwise(band)
    level = pl.lit("100 and more")
    for limit, name in reversed(_LEVELS):
        level = pl.when(pl.col("mean_count") < limit).then(pl.lit(name)).otherwise(level)
    return scored.with_columns(
        day=local.dt.date(),
        month=local.dt.strftime("%Y-%m"),
        hour=local.dt.strftime("%H"),
        hour_band=band,
        level=pl.when(pl.col("mean_count").is_null()).then(pl.lit(NO_HISTORY)).otherwise(level),
    ).join(calendar, on="day", how="left", maintain_order="left")


def evaluate(scored: pl.LazyFrame | pl.DataFrame) -> pl.DataFrame:
    """Every measure of every grouping, over all counted hours and again over the trusted ones.

    Args:
        scored: what `issue` returns, of one family and any number of origins.

    Returns:
        rows (of `ROW_SETS`), grouping (of `GROUPINGS`), group, subgroup (empty where there is one key), and the
        columns of `accuracy_table`.
    """
    frame = scored.lazy().collect()
    if frame.is_empty():
        raise PermanentError("backtest: no hour of the period was counted; choose a period within the counts")
    first, last = frame.select(pl.col("service_date").min(), pl.col("service_date").max().alias("last")).row(
        0
    )
    grouped = with_groups(frame.lazy(), days_between(first - _DAY, last + 7 * _DAY)).collect()
    del frame
    tables = []
    for rows in ROW_SETS:
        chosen = grouped if rows == "all" else grouped.filter("is_trusted")
        for grouping, keys in GROUPINGS.items():
            names = [pl.col(key).cast(pl.String) for key in keys]
            group, subgroup = [*names, pl.lit("all")][0], names[1] if len(names) > 1 else pl.lit("")
            tables.append(
                accuracy_table(chosen, keys)
                .with_columns(rows=pl.lit(rows), grouping=pl.lit(grouping), group=group, subgroup=subgroup)
                .select(
                    "rows",
                    "grouping",
                    "group",
                    "subgroup",
                    pl.exclude("rows", "grouping", "group", "subgroup", *keys),
                )
            )
    return pl.concat(tables)


@dataclass(frozen=True)
class Verdict:
    """How a family stands against the seasonal naive and its own intervals, over all counted hours.

    Attributes:
        months_lost: calendar months in which the seasonal naive has the smaller RMSE.
        horizons_lost: horizons at which it has.
        counters_won: share of counters at which the family has the smaller RMSE.
        counters_lost: the others.
        coverage_80: share of hours inside the 80 % interval; None without intervals.
        coverage_90: share inside the 90 % interval.
        counters_covered_80: share of counters whose coverage is within 5 points of 80 %.
        counters_covered_90: share whose coverage is within 5 points of 90 %.
        counter_months_covered_80: share of counters' months within 5 points of 80 %.
        counter_months_covered_90: share of counters' months within 5 points of 90 %.
    """

    months_lost: tuple[str, ...]
    horizons_lost: tuple[str, ...]
    counters_won: float
    counters_lost: tuple[str, ...]
    coverage_80: float | None
    coverage_90: float | None
    counters_covered_80: float | None
    counters_covered_90: float | None
    counter_months_covered_80: float | None
    counter_months_covered_90: float | None


def verdict(table: pl.DataFrame, rows: str = "all") -> Verdict:
    """Judge a family by its table of measures.

    Args:
        table: what `evaluate` returns.
        rows: which of `ROW_SETS`.
    """
    table = table.filter(rows=rows)

    def lost(grouping: str) -> tuple[str, ...]:
        chosen = table.filter(pl.col("grouping") == grouping)
        return tuple(chosen.filter(pl.col("rmse") >= pl.col("rmse_seasonal_naive"))["group"])

    def covered(grouping: str, coverage: int) -> float | None:
        found = table.filter(pl.col("grouping") == grouping)[f"coverage_{coverage}"].drop_nulls()
        # Bounds belong to the range; the sum of floats must not decide.
        inside = (found - coverage / 100).abs() <= 0.05 + 1e-9
        return float(inside.sum()) / found.len() if found.len() else None

    counters = table.filter(grouping="counter").height
    beaten = lost("counter")
    overall = table.filter(grouping="overall").row(0, named=True)
    return Verdict(
        months_lost=lost("month"),
        horizons_lost=lost("horizon"),
        counters_won=1 - len(beaten) / counters,
        counters_lost=beaten,
        coverage_80=overall["coverage_80"],
        coverage_90=overall["coverage_90"],
        counters_covered_80=covered("counter", 80),
        counters_covered_90=covered("counter", 90),
        counter_months_covered_80=covered("counter and month", 80),
        counter_months_covered_90=covered("counter and month", 90),
    )


def _parts(days: Sequence[date]) -> Iterator[Sequence[date]]:
    for start in range(0, len(days), CHUNK_DAYS):
        yield days[start : start + CHUNK_DAYS]
