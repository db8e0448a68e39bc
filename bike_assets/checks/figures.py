"""What the rules of whole days, counters and columns look at: one row each, beside what was usual before.

Belongs here: pure figures of a table. Does not belong here: which figure is a fault (see `expectations`).

Days know what kind they are: a day has 23, 24 or 25 hours, and is held against days of its kind in the weeks before,
a public holiday against Sundays and a bridge day against Saturdays.
"""

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Final

import polars as pl

from bike_assets.core.calendar import calendar_table, hours_of_day
from bike_assets.core.contracts import TableContract
from bike_assets.core.health import State
from bike_assets.core.imputation import FillMethod

HISTORY_DAYS: Final = 42
"""Days before a table whose counts say what is usual."""

REMOVED_DAYS: Final = 7
"""A counter without a row for so long is not missed any more."""

_MIN_DAYS = 3  # fewer days of a kind say nothing about what is usual
_SATURDAY, _SUNDAY = 5, 6


def column_figures(frame: pl.DataFrame, contract: TableContract) -> pl.DataFrame:
    """One row a contract column: `column`, its `type`, the `expected` type, `null_share`, values `not_finite`."""
    rows = []
    for column in contract.columns:
        values = frame.get_column(column.name) if column.name in frame.columns else None
        not_finite = int((~values.is_finite()).sum()) if values is not None and values.dtype.is_float() else 0
        rows.append(
            {
                "column": column.name,
                "type": "missing" if values is None else str(values.dtype),
                "expected": str(column.dtype),
                "null_share": 0.0 if values is None else values.null_count() / max(frame.height, 1),
                "not_finite": not_finite,
            }
        )
    return pl.DataFrame(rows)


def day_figures(
    frame: pl.DataFrame, usable: frozenset[str], history: pl.DataFrame | None = None
) -> pl.DataFrame:
    """One row a `service_date`: rows, shares and means, and what they are of what is usual.

    Args:
        frame: the table.
        usable: its columns that are there in the right type.
        history: rows of the `HISTORY_DAYS` before it, in the table's types; fewer columns will do.

    Returns:
        `completeness` is rows over counters times hours of the day; `volume_ratio` is rows an hour over their median
        of all days; `weekday_ratio` is the mean count over its median on days of the kind before; `hour_shift` is the
        share of the day's bicycles that came at other hours than on those days (total variation distance). Null
        where fewer than three such days are known.
    """
    figures: dict[str, tuple[str, pl.Expr]] = {
        "counters": ("counter_id", pl.col("counter_id").n_unique()),
        "null_share": ("hourly_count", pl.col("hourly_count").is_null().mean()),
        "zero_share": ("hourly_count", (pl.col("hourly_count") == 0).mean()),
        "mean_count": ("hourly_count", pl.col("hourly_count").mean()),
        "outage_share": ("is_outage", pl.col("is_outage").mean()),
        "spike_share": ("is_spike", pl.col("is_spike").mean()),
        "stuck_share": ("is_stuck", pl.col("is_stuck").mean()),
        "horizons": ("horizon", pl.col("horizon").n_unique()),
        "forecast_deviation": ("forecast", pl.col("forecast").std()),
        "unhealthy_share": ("state", (pl.col("state") != State.ALIVE).mean()),
        "unknown_state_share": ("state", (~pl.col("state").is_in(list(State))).mean()),
        "estimated_share": ("fill_method", (pl.col("fill_method") != FillMethod.PUBLISHED).mean()),
        "unknown_method_share": ("fill_method", (~pl.col("fill_method").is_in(list(FillMethod))).mean()),
    }
    present = {name: expression for name, (column, expression) in figures.items() if column in usable}
    days = frame.group_by("service_date").agg(rows=pl.len(), **present).with_columns(hours=_hours())
    if "counter_id" in usable:
        days = days.with_columns(completeness=pl.col("rows") / (pl.col("counters") * pl.col("hours")))
    known = _with_history(frame, history, [])
    before = known.group_by("service_date").agg(rows=pl.len()).with_columns(hours=_hours())
    usual = before.select((pl.col("rows") / pl.col("hours")).median()).item()
    days = days.with_columns(volume_ratio=pl.col("rows") / pl.col("hours") / usual)
    if "hourly_count" in usable:
        days = days.join(_beside_its_kind(frame, history, usable), on="service_date", how="left")
    return days.sort("service_date")


def counter_figures(frame: pl.DataFrame, history: pl.DataFrame | None = None) -> pl.DataFrame:
    """One row a counter: `known_hours`, `expected_hours` and `known_share` of the table's days.

    Expected are all hours of the table's days from the counter's first row on, in the history or here. A counter of
    the last `REMOVED_DAYS` of the history that is not in the table is missing all of them.
    """
    days = frame.select("service_date").unique().with_columns(hours=_hours()).sort("service_date")
    known = _with_history(frame, history, ["counter_id"])
    first_day = days["service_date"].min()
    assert isinstance(first_day, date)  # noqa: S101  for the type checker: the caller has rows
    lives = (
        known.group_by("counter_id")
        .agg(since=pl.col("service_date").min(), last=pl.col("service_date").max())
        .filter(pl.col("last") >= first_day - timedelta(days=REMOVED_DAYS))
    )
    expected = (
        lives.join(days, how="cross")
        .filter(pl.col("service_date") >= pl.col("since"))
        .group_by("counter_id")
        .agg(expected_hours=pl.col("hours").sum())
    )
    counted = (
        frame.drop_nulls("hourly_count").group_by("counter_id").agg(known_hours=pl.col("ts_utc").n_unique())
    )
    return (
        expected.join(counted, on="counter_id", how="left")
        .with_columns(pl.col("known_hours").fill_null(0))
        .with_columns(known_share=pl.col("known_hours") / pl.col("expected_hours"))
        .sort("known_share", "counter_id")
    )


def _beside_its_kind(
    frame: pl.DataFrame, history: pl.DataFrame | None, usable: frozenset[str]
) -> pl.DataFrame:
    """`service_date`, `weekday_ratio` and, where hours are known, `hour_shift`."""
    by_hour = "local_hour" in usable
    columns = ["hourly_count", *(["local_hour"] if by_hour else [])]
    rows = _with_history(frame, history, columns).drop_nulls("hourly_count")
    kinds = _kinds(rows["service_date"].unique().sort().to_list())
    means = (
        rows.group_by("service_date")
        .agg(mean=pl.col("hourly_count").cast(pl.Float64).mean())
        .join(kinds, on="service_date")
    )
    pairs = (
        frame.select("service_date")
        .unique()
        .join(kinds, on="service_date")
        .join(means.rename({"service_date": "other", "mean": "other_mean"}), on="kind")
        .filter(
            pl.col("other") < pl.col("service_date"),
            pl.col("other") >= pl.col("service_date") - pl.duration(days=HISTORY_DAYS),
        )
    )
    enough = pl.len() >= _MIN_DAYS
    result = (
        pairs.group_by("service_date")
        .agg(usual=pl.when(enough).then(pl.col("other_mean").median()))
        .join(means, on="service_date")
        .select("service_date", weekday_ratio=pl.col("mean") / pl.when(pl.col("usual") > 0).then("usual"))
    )
    if not by_hour:
        return result
    shares = (
        rows.group_by("service_date", "local_hour")
        .agg(share=pl.col("hourly_count").cast(pl.Float64).sum())
        .with_columns(pl.col("share") / pl.col("share").sum().over("service_date"))
    )
    # Every hour of the clock on both sides: spring has none at two.
    clock = pl.DataFrame({"local_hour": range(24)}, schema={"local_hour": pl.Int32})
    usual = (
        pairs.join(shares.rename({"service_date": "other"}), on="other")
        .group_by("service_date", "local_hour")
        .agg(usual=pl.col("share").sum(), n=pl.len())
        .with_columns(
            pl.col("usual") / pl.col("usual").sum().over("service_date"),
            n=pl.col("n").max().over("service_date"),
        )
        .filter(pl.col("n") >= _MIN_DAYS)
    )
    shift = (
        usual.select("service_date")
        .unique()
        .join(clock, how="cross")
        .join(usual, on=["service_date", "local_hour"], how="left")
        .join(shares, on=["service_date", "local_hour"], how="left")
        .group_by("service_date")
        .agg(hour_shift=0.5 * (pl.col("share").fill_null(0) - pl.col("usual").fill_null(0)).abs().sum())
    )
    return result.join(shift, on="service_date", how="left")


def _kinds(days: Iterable[date]) -> pl.DataFrame:
    """`service_date` and `kind`: the weekday, Sunday for a public holiday, Saturday for a bridge day."""
    return calendar_table(days).select(
        "service_date",
        kind=pl.when("is_public_holiday")
        .then(_SUNDAY)
        .when("is_bridge_day")
        .then(_SATURDAY)
        .otherwise("weekday"),
    )


def _hours() -> pl.Expr:
    """Hours of the local day."""
    return pl.col("service_date").map_elements(lambda day: len(hours_of_day(day)), return_dtype=pl.Int64)


def _with_history(frame: pl.DataFrame, history: pl.DataFrame | None, columns: list[str]) -> pl.DataFrame:
    wanted = ["service_date", *columns]
    if history is None or history.is_empty():
        return frame.select(wanted)
    return pl.concat([history.select(wanted), frame.select(wanted)])
