"""Forecast rows that are worked out for one request: a column more, other weather, an older morning, other rows.

Belongs here: tables made from a champion's vintages, and what is wrong with a question about them. Does not belong
here: the look-up of the commonest question (`bike_serving.forecasts`), forms of answers (`bike_serving.media`), HTTP.
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

import polars as pl

from bike_assets.core.affluence import with_affluence
from bike_assets.core.calendar import issue_time
from bike_assets.core.features import FEATURE_COLUMNS
from bike_serving.champion import Champion
from bike_serving.forecasts import iso
from bike_serving.problems import ProblemError, some
from bike_serving.schemas import MAX_COUNTER_ID

VALUES = ("forecast", "lower_80", "upper_80", "lower_90", "upper_90")
COLUMNS = ("counter_id", "target_ts", "horizon", *VALUES, "basis")
"""A forecast as every form of an answer has it."""

AFFLUENCE_COLUMNS = ("affluence", "high_probability", "threshold")
KEYS = ("counter_id", "target_ts")

HOUR = pl.Datetime("us", "UTC")


def issue_date_of(champion: Champion, asked: date | None) -> date:
    """The issue date to answer for: the one asked for, or the newest.

    Raises:
        ProblemError: 422, the bundle does not hold its history.
    """
    first, last = champion.bundle.first_issue_date, champion.bundle.issue_date
    if asked is None:
        return last
    if not first <= asked <= last:
        raise ProblemError(
            422,
            "issue-date-out-of-range",
            f"issue_date: {asked} cannot be answered; issue dates are {first} to {last}",
            issue_dates={"first": str(first), "last": str(last)},
        )
    return asked


def known_at(champion: Champion, moment: datetime) -> date:
    """The issue date of the newest forecast that there was at a moment.

    Raises:
        ProblemError: 422, the moment is before the oldest forecast that can be given.
    """
    first, last = champion.bundle.first_issue_date, champion.bundle.issue_date
    tz = champion.bundle.info.timezone
    if moment < issue_time(first, tz):
        raise ProblemError(
            422,
            "issue-date-out-of-range",
            f"as_of: forecasts are known from {iso(issue_time(first, tz))} on; issue dates are {first} to {last}",
            issue_dates={"first": str(first), "last": str(last)},
        )
    if moment >= issue_time(last, tz):
        return last
    day = moment.date()  # at most a day off, since no local time is further from UTC
    return max(
        candidate
        for candidate in (date.fromordinal(day.toordinal() + step) for step in (-2, -1, 0, 1))
        if first <= candidate <= last and issue_time(candidate, tz) <= moment
    )


def of_counters(champion: Champion, counter_ids: Sequence[str] | None, issue_date: date) -> pl.DataFrame:
    """The vintage of an issue date, COLUMNS, of all counters or some.

    Raises:
        ProblemError: 404, a counter has no forecast.
    """
    vintage = champion.bundle.forecast(issue_date=issue_date).select(COLUMNS)
    if counter_ids is None:
        return vintage
    require_known(vintage, counter_ids)
    return vintage.filter(pl.col("counter_id").is_in(list(counter_ids)))


def of_rows(vintage: pl.DataFrame, wanted: pl.DataFrame, issue_date: date) -> pl.DataFrame:
    """Forecasts of a vintage for rows of counter and hour, in their order, repetitions included.

    Args:
        vintage: rows with COLUMNS and any others.
        wanted: counter_id and target_ts.
        issue_date: of the vintage.

    Raises:
        ProblemError: 404 a counter, or 422 an hour has no forecast.
    """
    require_known(vintage, wanted.get_column("counter_id").unique(maintain_order=True).to_list())
    found = wanted.select(KEYS).join(vintage, on=KEYS, how="left", maintain_order="left")
    outside = found.filter(pl.col("forecast").is_null()).get_column("target_ts").unique(maintain_order=True)
    if not outside.is_empty():
        first, last = (iso(hour) for hour in _window(vintage))
        raise ProblemError(
            422,
            "outside-window",
            f"target_hours: {some([iso(hour) for hour in outside])} is outside the forecast issued on "
            f"{issue_date}, whose hours are {first} to {last}",
            window={"first": first, "last": last},
        )
    return found.select(vintage.columns)


def _window(vintage: pl.DataFrame) -> tuple[datetime, datetime]:
    first, last = vintage.select(pl.col("target_ts").min(), pl.col("target_ts").max().alias("last")).row(0)
    return first, last


def require_known(vintage: pl.DataFrame, counter_ids: Sequence[str]) -> None:
    """That a vintage has these counters.

    Raises:
        ProblemError: 404, it lacks some.
    """
    known = set(vintage.get_column("counter_id").unique())
    if unknown := [counter_id for counter_id in counter_ids if counter_id not in known]:
        raise ProblemError(
            404,
            "unknown-counter",
            f"no forecast for counter {some(unknown)}; GET /v1/counters lists the counters",
            counter_ids=unknown[:100],
        )


def product(counter_ids: Sequence[str], hours: Sequence[datetime]) -> pl.DataFrame:
    """Rows of every counter at every hour; repetitions once."""
    counters = pl.DataFrame({"counter_id": list(dict.fromkeys(counter_ids))})
    wanted = pl.DataFrame({"target_ts": list(dict.fromkeys(hours))}, schema={"target_ts": HOUR})
    return counters.join(wanted, how="cross", maintain_order="left_right")


def add_affluence(champion: Champion, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with AFFLUENCE_COLUMNS: high, low or null, its probability, and the counter's mean that divides them."""
    return with_affluence(rows, champion.bundle.affluence).with_columns(
        affluence=pl.when(pl.col("threshold").is_null())
        .then(None)
        .when(pl.col("forecast") > pl.col("threshold"))
        .then(pl.lit("high"))
        .otherwise(pl.lit("low"))
    )


def add_features(champion: Champion, rows: pl.DataFrame, issue_date: date) -> pl.DataFrame:
    """Rows with a struct `features_used`: the inputs of the model that each forecast was computed from."""
    features = champion.features(issue_date).select(*KEYS, pl.struct(FEATURE_COLUMNS).alias("features_used"))
    return rows.join(features, on=KEYS, how="left", maintain_order="left")


def vintages_of_days(champion: Champion, wanted: pl.DataFrame, horizon: int) -> pl.DataFrame:
    """Rows of counter and hour with the forecast that was issued for them `horizon` days ahead; others are left out.

    Args:
        champion: whose vintages.
        wanted: counter_id, target_ts, each pair once, and any other columns.
        horizon: 1 is the forecast issued on the morning of the hour's own day.

    Returns:
        The columns of `wanted`, then service_date (the issue date), horizon, VALUES, mean4 and seasonal_naive.
    """
    wanted = near(champion, wanted)
    issued = local_day(champion, "target_ts").dt.offset_by(f"-{horizon - 1}d")
    rows = wanted.with_columns(service_date=issued)
    parts = []
    for (day,), part in sorted(rows.partition_by("service_date", as_dict=True).items()):
        assert isinstance(day, date)  # noqa: S101
        if champion.bundle.first_issue_date <= day <= champion.bundle.issue_date:
            vintage = champion.bundle.forecast(issue_date=day).filter(pl.col("horizon") == horizon)
            columns = [*KEYS, "horizon", *VALUES, "mean4", "seasonal_naive"]
            parts.append(part.join(vintage.select(columns), on=KEYS, how="inner"))
    return pl.concat(parts) if parts else rows.clear()


def local_day(champion: Champion, column: str) -> pl.Expr:
    """The local day of an hour."""
    return pl.col(column).dt.convert_time_zone(champion.bundle.info.timezone).dt.date()


def identity_headers(champion: Champion, issue_date: date) -> dict[str, str]:
    """What forms of an answer that have no place for it tell in headers: the version that answered."""
    return {
        "X-Model-Name": champion.ref.name,
        "X-Model-Version": champion.ref.version,
        "X-Bundle-Id": champion.ref.bundle_id,
        "X-Issue-Date": issue_date.isoformat(),
    }


def require_columns(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """The named columns as text, and each row with a counter.

    Raises:
        ProblemError: 422, a column is missing, or a row names no counter.
    """
    if missing := [name for name in names if name not in frame.columns]:
        raise ProblemError(422, "invalid-request", f"the table has no column {', '.join(missing)}")
    try:
        frame = frame.select(pl.col(name).cast(pl.String) for name in names)
    except pl.exceptions.PolarsError as error:
        raise ProblemError(422, "invalid-request", "the table's columns are no text and numbers") from error
    length = pl.col("counter_id").str.len_chars()
    odd = frame.filter(~length.is_between(1, MAX_COUNTER_ID).fill_null(False))
    if not odd.is_empty():
        raise ProblemError(422, "invalid-request", "counter_id: a row has none, or one that is too long")
    return frame


def near(champion: Champion, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows within a year of what the bundle knows: calendars end, and nothing further away can be judged."""
    first, last = champion.bundle.first_issue_date, champion.bundle.issue_date
    year = timedelta(days=366)
    return rows.filter(pl.col("target_ts").dt.date().is_between(first - year, last + year))


def utc_hours(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """The frame with a column of ISO 8601 text turned into hours.

    Raises:
        ProblemError: 422, naming the first row that is none.
    """
    text = pl.col(column).str.strip_chars().str.replace(" ", "T", literal=True)
    zoned = frame.with_columns(
        pl.when(text.str.contains(r"(Z|z|[+-]\d{2}:?\d{2})$"))
        .then(text.str.replace(r"[zZ]$", "+00:00"))
        .alias(column)
    )
    hours = zoned.with_columns(
        pl.coalesce(
            pl.col(column).str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
            for form in ("%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M%:z", "%Y-%m-%dT%H:%M:%S%.f%z")
        ).alias(column)
    )
    # Polars knows years that Python's calendar, and so everything after this, does not.
    known = pl.col(column).dt.year().is_between(1, 9999)
    whole = (known & (pl.col(column) == pl.col(column).dt.truncate("1h"))).fill_null(False)
    wrong = hours.with_row_index("row").filter(~whole)
    if not wrong.is_empty():
        row = wrong.get_column("row").item(0) + 1
        raise ProblemError(
            422,
            "invalid-request",
            f"{column}: row {row} is no whole hour with a time zone, such as 2024-02-26T07:00:00Z",
        )
    return hours
