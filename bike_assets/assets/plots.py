"""Small plots for the metadata of assets: each function returns Markdown with the picture inside.

Belongs here: pictures of what an asset made. Does not belong here: computing what they show, Dagster,
dashboards.

A picture is a PNG of at most `MAX_BYTES`, because Dagster keeps it in its event log for every
materialisation.
"""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from datetime import date, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import polars as pl

from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.core.drift import DriftSummary
from bike_assets.core.experiment import Look
from bike_assets.core.network import Network, expected_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

MAX_BYTES = 40_000
MAX_BARS = 20

_LEFT_OUT: ContextVar[bool] = ContextVar("pictures left out", default=False)

_TRUTH, _FORECAST, _BASELINE, _ALARM = "#333333", "#1f77b4", "#999999", "#c0392b"


@contextmanager
def left_out() -> Iterator[None]:
    """Within it no picture is drawn: for replays, which make thousands that nobody looks at."""
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def _picture(alternative: str) -> Callable[[Callable[P, "Figure"]], Callable[P, str]]:
    """What draws, as a function that returns Markdown with its picture inside; within `left_out` nothing is drawn."""

    def of(draw: Callable[P, "Figure"]) -> Callable[P, str]:
        @wraps(draw)
        def shown(*arguments: P.args, **named: P.kwargs) -> str:
            if _LEFT_OUT.get():
                return f"{alternative}: left out in a replay"
            picture = base64.b64encode(png(draw(*arguments, **named))).decode("ascii")
            return f"![{alternative}](data:image/png;base64,{picture})"

        return shown

    return of


@_picture("Forecast against counts")
def forecast_vs_truth(
    predictions: pl.DataFrame, truth: pl.DataFrame, counter: str, *, horizon: int = 1, days: int = 14
) -> "Figure":
    """Forecast with its 80 % interval against what was counted, at one counter.

    Args:
        predictions: `counter_id`, `target_ts` (UTC), `horizon`, `forecast`, `lower_80`, `upper_80`.
        truth: `counter_id`, `ts_utc`, `hourly_count`; may lack the newest hours.
        counter: its `counter_id`.
        horizon: which vintage to show, days ahead.
        days: how many of the newest days to show.
    """
    shown = (
        predictions.filter((pl.col("counter_id") == counter) & (pl.col("horizon") == horizon))
        .join(
            truth.select("counter_id", pl.col("ts_utc").alias("target_ts"), "hourly_count"),
            on=["counter_id", "target_ts"],
            how="left",
        )
        .sort("target_ts")
        .with_columns(local=pl.col("target_ts").dt.convert_time_zone(LOCAL_TZ).dt.replace_time_zone(None))
        .filter(pl.col("local") > pl.col("local").max() - pl.duration(days=days))
    )
    figure, axes = new_figure(width=9)
    hours = shown["local"].to_list()
    axes.fill_between(
        hours, shown["lower_80"].to_list(), shown["upper_80"].to_list(), color=_FORECAST, alpha=0.2, lw=0,
        label="80 % interval",
    )  # fmt: skip
    axes.plot(hours, shown["forecast"].to_list(), color=_FORECAST, lw=1.2, label="forecast")
    axes.plot(hours, _numbers(shown["hourly_count"]), color=_TRUTH, lw=1, label="counted")
    axes.set_title(f"{counter}: forecast {horizon} day{'s' if horizon > 1 else ''} ahead against counts")
    axes.set_ylabel("bicycles an hour")
    axes.set_xlabel(f"local time ({LOCAL_TZ})")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    _dates(axes)
    axes.legend(loc="upper left", ncols=3, frameon=False)
    return figure


@_picture("RMSE by horizon")
def error_by_horizon(metrics: Mapping[int, Any]) -> "Figure":
    """RMSE of the model and of the baseline for each horizon, with the skill written above.

    Args:
        metrics: horizon in days → `Metrics` or a mapping with `rmse`, `rmse_mean4` and `skill`.
    """
    table = {horizon: _mapping(values) for horizon, values in sorted(metrics.items())}
    figure, axes = new_figure()
    places = list(range(len(table)))
    baseline = [float(values["rmse_mean4"]) for values in table.values()]
    rmse = [float(values["rmse"]) for values in table.values()]
    axes.bar([p - 0.2 for p in places], baseline, 0.4, color=_BASELINE, label="mean of four weeks (baseline)")
    axes.bar([p + 0.2 for p in places], rmse, 0.4, color=_FORECAST, label="model")
    for place, low, high, values in zip(places, rmse, baseline, table.values(), strict=True):
        axes.annotate(
            f"skill {float(values['skill']):.2f}", (place, max(low, high)), ha="center", va="bottom"
        )
    axes.set_xticks(places, [str(horizon) for horizon in table])
    axes.set_ylim(top=1.3 * max([*baseline, *rmse], default=1))
    axes.set_title("Error by horizon")
    axes.set_xlabel("horizon (days ahead, 1 = day of issue)")
    axes.set_ylabel("RMSE (bicycles an hour)")
    axes.legend(loc="upper left", ncols=2, frameon=False)
    return figure


@_picture("Error by hour of the day")
def error_by_hour(table: pl.DataFrame) -> "Figure":
    """WAPE and bias by hour of the local day, as shares of the counts.

    Args:
        table: what `core.backtest.evaluate` returns, of one model.
    """
    hours = table.filter(rows="all", grouping="hour")
    figure, axes = new_figure()
    names = hours["group"].to_list()
    axes.bar(names, _numbers(hours["wape"]), color=_BASELINE, label="absolute error (WAPE)")
    axes.plot(
        names, _numbers(hours["bias_share"]), color=_ALARM, marker="o", ms=3, label="forecast − counted"
    )
    axes.axhline(0, color=_TRUTH, lw=1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("Error by hour of the day, share of what was counted")
    axes.set_xlabel("local hour")
    axes.legend(frameon=False)
    return figure


@_picture("Drift score by column")
def drifted_columns(summary: DriftSummary) -> "Figure":
    """Drift score of the tested columns, largest first, with the threshold."""
    bars = sorted(summary.scores.items(), key=lambda item: -item[1])[:MAX_BARS]
    share = (
        "nothing testable"
        if summary.share is None
        else f"{100 * summary.share:.0f} % of {len(summary.columns)} columns"
    )
    drifted = set(summary.drifted)
    figure, axes = horizontal_bars(
        bars,
        title=f"Drift: {share}",
        label=f"{summary.method} distance (standard deviations of the reference)",
        colours=[_ALARM if name in drifted else _BASELINE for name, _ in bars],
    )
    axes.axvline(summary.threshold, color=_TRUTH, lw=1, ls="--", label=f"threshold {summary.threshold:g}")
    axes.legend(loc="lower right", frameon=False)
    return figure


@_picture("Level of the network and its expectation")
def network_level(city: Network, last: date, weeks: int = 12) -> "Figure":
    """The network's level of the last weeks, and what the time before them leads to expect of each day."""
    first = max(last - timedelta(days=7 * weeks - 1), city.days[0])
    at = city.days.index(first)
    days: Any = list(
        city.days[at : city.days.index(last) + 1]
    )  # matplotlib takes dates, its types do not say so
    figure, axes = new_figure()
    percent = [100.0 * value for value in np.exp(city.level[at : at + len(days)]).tolist()]
    expected = [100.0 * value for value in np.exp(expected_level(city, first, last)).tolist()]
    axes.plot(days, percent, color=_TRUTH, label="counted")
    axes.plot(days, expected, color=_FORECAST, ls="--", label=f"expected, as learned before {first}")
    axes.set_ylabel("level (% of the usual day)")
    axes.set_title("The network, day by day")
    axes.legend(frameon=False)
    _dates(axes)
    return figure


@_picture("Bicycles counted a day")
def daily_counts(frame: pl.DataFrame) -> "Figure":
    """Bicycles counted by all counters together, day by day, and how many counters reported.

    Args:
        frame: `service_date`, `counter_id`, `hourly_count`.
    """
    days = (
        frame.group_by("service_date")
        .agg(
            total=pl.col("hourly_count").sum(),
            counters=pl.col("counter_id").filter(pl.col("hourly_count").is_not_null()).n_unique(),
        )
        .sort("service_date")
    )
    figure, axes = new_figure(width=9)
    dates = days["service_date"].to_list()
    marker = "o" if len(dates) < 15 else None
    axes.plot(dates, _numbers(days["total"] / 1000), color=_FORECAST, lw=1.2, marker=marker, label="bicycles")
    axes.set_ylim(bottom=0)
    axes.set_title("Bicycles counted a day")
    axes.set_ylabel("thousand bicycles a day")
    axes.set_xlabel("local day")
    other = axes.twinx()
    other.plot(dates, days["counters"].to_list(), color=_BASELINE, lw=1, ls="--", label="counters")
    other.set_ylim(bottom=0)
    other.set_ylabel("counters reporting")
    lines = [*axes.get_lines(), *other.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="lower left", ncols=2, frameon=False)
    _dates(axes)
    return figure


@_picture("Feature importance")
def feature_importance(pairs: Iterable[tuple[str, float]]) -> "Figure":
    """The most important features, largest first.

    Args:
        pairs: feature and importance in percent of the total.
    """
    bars = sorted(pairs, key=lambda item: -item[1])[:MAX_BARS]
    figure, _ = horizontal_bars(
        bars,
        title="Feature importance",
        label="share of the prediction's change (%)",
        colours=[_FORECAST] * len(bars),
    )
    return figure


@_picture("Level by counter")
def counter_levels(frame: pl.DataFrame) -> "Figure":
    """Mean daily count of the busiest counters.

    Args:
        frame: `service_date`, `counter_id`, `hourly_count`.
    """
    levels = (
        frame.drop_nulls("hourly_count")
        .group_by("counter_id", "service_date")
        .agg(pl.col("hourly_count").sum())
        .group_by("counter_id")
        .agg(pl.col("hourly_count").mean())
        .sort("hourly_count", "counter_id", descending=[True, False])
    )
    bars = [(str(name), float(level)) for name, level in levels.head(MAX_BARS).iter_rows()]
    figure, _ = horizontal_bars(
        bars,
        title=f"Level of the busiest of {levels.height} counters",
        label="bicycles a day, mean of the days shown",
        colours=[_FORECAST] * len(bars),
    )
    return figure


@_picture("State by counter and day")
def counter_states(health: pl.DataFrame) -> "Figure":
    """The state of the counters that were not always alive, day by day.

    Args:
        health: `service_date`, `counter_id`, `state`, as `COUNTER_HEALTH`.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    names = ("alive", "silent", "dead", "stuck", "drifting")
    colours = ("#dff0d8", "#999999", "#333333", "#8e44ad", "#c0392b")
    code = pl.col("state").replace_strict(names, range(len(names)), return_dtype=pl.Int32)
    days = health["service_date"].unique().sort().to_list()
    worst = (
        health.group_by("counter_id")
        .agg(bad=(pl.col("state") != "alive").sum())
        .filter(pl.col("bad") > 0)
        .sort("bad", "counter_id", descending=[True, False])
    )
    shown = worst.head(2 * MAX_BARS)["counter_id"].to_list()
    figure, axes = new_figure(width=9, height=1.4 + 0.2 * max(len(shown), 3))
    grid = [[float("nan")] * len(days) for _ in shown]
    for day, counter, value in (
        health.filter(pl.col("counter_id").is_in(shown))
        .select("service_date", "counter_id", code)
        .iter_rows()
    ):
        grid[shown.index(counter)][days.index(day)] = value
    total = health["counter_id"].n_unique()
    axes.set_title(f"{worst.height} of {total} counters were not always alive")
    if shown:
        axes.imshow(
            grid, aspect="auto", interpolation="none", cmap=ListedColormap(colours), vmin=0, vmax=len(names) - 1
        )  # fmt: skip
        axes.set_yticks(range(len(shown)), shown, fontsize=7)
        ticks = range(0, len(days), max(1, len(days) // 6))
        axes.set_xticks(ticks, [f"{days[tick]:%d %b}" for tick in ticks])
        axes.grid(visible=False)
        axes.legend(
            handles=[Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)],
            loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(names), frameon=False,
        )  # fmt: skip
    return figure


@_picture("Hours that differ between exports")
def export_differences(differences: pl.DataFrame) -> "Figure":
    """Hours on which exports do not agree, the counters with most of them first.

    Args:
        differences: `difference`, `counter_id`, `counter_name`, `hours`, as `EXPORT_DIFFERENCES`.
    """
    colours = {"corrected": _FORECAST, "vanished counter": _ALARM}
    top = (
        differences.group_by(
            "difference", "counter_id", pl.col("counter_name").fill_null(pl.col("counter_id"))
        )
        .agg(pl.col("hours").sum())
        .sort("hours", "difference", "counter_id", descending=[True, False, False])
        .head(MAX_BARS)
    )
    figure, _ = horizontal_bars(
        [
            (f"{row['difference']}: {row['counter_name']}", float(row["hours"]))
            for row in top.iter_rows(named=True)
        ],
        title=f"{differences['hours'].sum():,} hours differ between exports",
        label="hours",
        colours=[colours.get(kind, _BASELINE) for kind in top["difference"]],
    )
    return figure


@_picture("Gain of the challenger with its interval, day by day")
def experiment(looks: Sequence[Look], worth: float) -> "Figure":
    """The challenger's gain day by day, with the interval that is valid on all of them.

    Args:
        looks: as `core.experiment.compare` gives them; at least one.
        worth: the least gain that is worth a change.
    """
    figure, axes = new_figure()
    days = [look.day for look in looks]
    # An interval that says nothing yet is wider than any picture.
    shown = max(4 * worth, *(2 * abs(look.effect) for look in looks))
    axes.fill_between(
        days,  # type: ignore[arg-type]
        [100 * max(look.lower, -shown) for look in looks],
        [100 * min(look.upper, shown) for look in looks],
        color=_FORECAST, alpha=0.2, lw=0, label="interval, valid on every day",
    )  # fmt: skip
    axes.plot(days, [100 * look.effect for look in looks], color=_FORECAST, marker="o", ms=3, label="gain")  # type: ignore[arg-type]
    axes.axhline(0, color=_TRUTH, lw=1)
    axes.axhline(100 * worth, color=_ALARM, lw=1, ls="--", label="worth a change")
    axes.set_title("Challenger against champion")
    axes.set_ylabel("error saved, % of the champion's")
    axes.set_xlabel("last day of truth")
    _dates(axes)
    axes.legend(loc="best", frameon=False)
    return figure


def horizontal_bars(
    bars: list[tuple[str, float]], *, title: str, label: str, colours: list[str]
) -> tuple["Figure", "Axes"]:
    figure, axes = new_figure(height=1.2 + 0.24 * max(len(bars), 3))
    places = list(range(len(bars)))
    axes.barh(places, [value for _, value in bars], color=colours)
    # Names may repeat once shortened, so the bars stand at numbers.
    axes.set_yticks(places, [name if len(name) <= 40 else f"{name[:39]}…" for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.set_xlabel(label)
    return figure, axes


def new_figure(width: float = 7.5, height: float = 3.6) -> tuple["Figure", "Axes"]:
    """Figure and axes in the style of the platform."""
    # A figure without pyplot: no global state, no window system, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(axis="both", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _dates(axes: "Axes") -> None:
    from matplotlib import dates

    # Any: matplotlib's dates module states no types.
    typeless: Any = dates
    locator = typeless.AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(typeless.ConciseDateFormatter(locator))


def _numbers(series: pl.Series) -> list[float]:
    return series.cast(pl.Float64).fill_null(float("nan")).to_list()


def _mapping(values: Any) -> Mapping[str, Any]:
    if is_dataclass(values) and not isinstance(values, type):
        return asdict(values)
    return dict(values)


def png(figure: "Figure") -> bytes:
    """The figure as a PNG of at most `MAX_BYTES`, as far as fewer dots get there."""
    from PIL import Image

    small = io.BytesIO()
    for dpi in (80, 60):
        full = io.BytesIO()
        figure.savefig(full, format="png", dpi=dpi)
        # A palette of 64 colours looks the same and takes a third of the space.
        small = io.BytesIO()
        with Image.open(full) as picture:
            picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
                small, format="png", optimize=True
            )
        if small.tell() <= MAX_BYTES:
            break
    return small.getvalue()
