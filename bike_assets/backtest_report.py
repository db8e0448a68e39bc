"""The report of a backtest: one HTML file with its tables and plots inside, which needs no network.

Belongs here: what a person reads about a backtest. Does not belong here: the numbers (`bike_assets.core.backtest`).
"""

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import polars as pl

from bike_assets.assets.plots import new_figure, png
from bike_assets.core.backtest import BASELINES, GROUPINGS
from bike_assets.core.model_card import worst_counters

_COLOURS: Final = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b")
_GREYS: Final = dict(zip(BASELINES, ("#777777", "#bbbbbb"), strict=True))
_WORST: Final = 15

_MEASURES: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("n", "hours", ",", "forecast hours that were counted"),
    ("truth_mean", "mean count", ".1f", "bicycles an hour"),
    ("r2", "R²", ".4f", "1 − squared error / variance of the counts"),
    ("rmse", "RMSE", ".2f", "bicycles an hour"),
    ("mae", "MAE", ".2f", "bicycles an hour"),
    ("wape", "WAPE", ".1%", "sum of absolute errors / sum of counts"),
    ("mase", "MASE", ".3f", "absolute error / that of the weekly naive in training, each counter its own"),
    ("bias", "bias", "+.2f", "mean of forecast − count, bicycles an hour"),
    ("geh5_share", "GEH < 5", ".1%", "share of hours a traffic engineer accepts"),
    ("skill_mean4", "skill mean4", ".1%", "1 − RMSE / RMSE of the mean of the last four weeks"),
    ("skill_seasonal_naive", "skill naive", ".1%", "1 − RMSE / RMSE of the same hour a week before"),
    ("pinball", "pinball", ".3f", "mean loss of the four ends of the intervals, bicycles an hour"),
    ("coverage_80", "in 80 %", ".1%", "share of counts inside the 80 % interval"),
    ("width_80", "width 80", ".1f", "mean width of that interval, bicycles an hour"),
    ("coverage_90", "in 90 %", ".1%", "share of counts inside the 90 % interval"),
    ("width_90", "width 90", ".1f", "mean width of that interval, bicycles an hour"),
)
_SHORT: Final = ("n", "r2", "rmse", "wape", "bias", "geh5_share", "skill_seasonal_naive", "coverage_90")

STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1400px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #ddd}
h3{font-size:1rem;margin:1.2rem 0 .2rem}p{margin:.4rem 0}.quiet{color:#666}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:.4rem 0}
th,td{padding:.15rem .55rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
th{background:#f6f6f6;font-weight:600}th:first-child,td:first-child,.words{text-align:left}
.wide{overflow-x:auto}
.side{display:flex;flex-wrap:wrap;gap:1rem 3rem;align-items:flex-start}
img{max-width:100%;height:auto}code{background:#f4f4f4;padding:.1rem .3rem;word-break:break-all}
.good{color:#17692f}.bad{color:#b3261e}
"""


def report_html(result: Mapping[str, Any], metrics: pl.DataFrame) -> str:
    """The report.

    Args:
        result: what `run_backtest` returns.
        metrics: the tables of `evaluate` of every family, with a column `family`.

    Returns:
        A whole HTML document. Plots are images inside it.
    """
    config = result["config"]
    main = config["families"][0]
    families = list(result["families"])
    title = f"Backtest {config['first']} to {config['last']}"
    trainings = [str(origin["train_until"]) for origin in result["origins"]]
    parts = [
        f"<h1>{title}</h1>",
        f"<p class=quiet>{len(trainings)} training{'s' if len(trainings) > 1 else ''}, on counts up to "
        f"{', '.join(trainings[:3])}{' …' if len(trainings) > 3 else ''}; forecasts issued every day at 07:00 "
        f"from counts of the days before; weather: {config['weather']}; every counted hour is scored. "
        "Trusted hours are those not flagged as outage, spike or stuck.</p>",
        f"<p class=quiet>Again: <code>{html.escape(result['command'])}</code> · id {result['id']}</p>",
        "<h2>Families side by side</h2>",
        _families_table(metrics, families, "all", "Every counted hour, all horizons"),
        _families_table(metrics, families, "trusted", "Trusted hours, all horizons"),
        "<div class=side>",
        _lines(metrics, families, "horizon", "rmse", "RMSE by horizon", "horizon (days ahead)"),
        _lines(
            metrics, families, "month", "wape", "WAPE by month", "month of the hour forecast", percent=True
        ),
        "</div>",
        "<h2>Against the seasonal naive, and the intervals</h2>",
        *(
            _verdict(family, result["families"][family]["verdict"])
            for family in families
            if family not in BASELINES
        ),
        f"<h2>{html.escape(main)}: by horizon</h2>",
        _group_table(metrics, main, "horizon", "day", [name for name, *_ in _MEASURES]),
        f"<h2>{html.escape(main)}: where it fails</h2>",
        _worst_counters(metrics, main),
        "<div class=side>",
        _heat(metrics, main, "bias_share", "Bias by weekday and hour (share of the counts)", centred=True),
        _heat(metrics, main, "wape", "WAPE by weekday and hour", centred=False),
        "</div><div class=side>",
        _coverage_by_counter(metrics, main),
        _lines(
            metrics,
            [main],
            "month",
            "coverage_90",
            "Coverage of the 90 % interval by month",
            "month",
            percent=True,
            level=0.9,
        ),
        "</div>",
        f"<h2>{html.escape(main)}: by kind of hour</h2><div class=side>",
        *(
            f"<div><h3>{grouping}</h3>{_group_table(metrics, main, grouping, grouping, _SHORT)}</div>"
            for grouping in ("month", "day", "holiday", "hour band", "level", "weekday")
        ),
        "</div>",
        f"<h2>{html.escape(main)}: every counter</h2>",
        _group_table(metrics, main, "counter", "counter", [name for name, *_ in _MEASURES]),
        "<h2>High or low against the counter's own mean</h2><div class=side>",
        _affluence_table(result["families"]),
        _reliability(main, result["families"][main]["affluence"]["reliability"]),
        "</div>",
        "<h2>Measures</h2><table>",
        *(
            f"<tr><td>{label}</td><td style='text-align:left'>{meaning}</td></tr>"
            for _, label, _, meaning in _MEASURES
        ),
        "</table>",
        f"<p class=quiet>All groupings ({', '.join(GROUPINGS)}), families and both sets of hours are in "
        "<code>metrics.parquet</code> beside this file.</p>",
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>"
    )


def _rows(metrics: pl.DataFrame, family: str, grouping: str, rows: str = "all") -> pl.DataFrame:
    return metrics.filter(family=family, grouping=grouping, rows=rows)


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of texts, which may hold anything. Columns of words stand on the left, of numbers on the right."""
    rows = list(body)
    kinds = [
        " class=words" if any(row[number][:1].isalpha() for row in rows) else ""
        for number in range(len(head))
    ]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )

    lines = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{line('th', head)}</tr>{lines}</table></div>"


def _cells(row: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    forms = {name: form for name, _, form, _ in _MEASURES}
    return ["–" if row[name] is None else format(row[name], forms[name]) for name in measures]


def _labels(measures: Sequence[str]) -> list[str]:
    labels = {name: label for name, label, *_ in _MEASURES}
    return [labels[name] for name in measures]


def _families_table(metrics: pl.DataFrame, families: Sequence[str], rows: str, title: str) -> str:
    measures = [name for name, *_ in _MEASURES]
    body = [
        [family, *_cells(_rows(metrics, family, "overall", rows).row(0, named=True), measures)]
        for family in families
    ]
    return f"<h3>{title}</h3>{table(['family', *_labels(measures)], body)}"


def _group_table(
    metrics: pl.DataFrame, family: str, grouping: str, name: str, measures: Sequence[str]
) -> str:
    found = _rows(metrics, family, grouping)
    body = [[row["group"], *_cells(row, measures)] for row in found.iter_rows(named=True)]
    return table([name, *_labels(measures)], body)


def _verdict(family: str, found: Mapping[str, Any]) -> str:
    def line(good: bool, text: str) -> str:
        return f"<li class={'good' if good else 'bad'}>{text}</li>"

    lost = [
        ("month", found["months_lost"]),
        ("horizon", found["horizons_lost"]),
    ]
    lines = [
        line(
            not names,
            f"seasonal naive better in {'no ' + what if not names else what + ' ' + ', '.join(names)}",
        )
        for what, names in lost
    ]
    worse = ", ".join(map(html.escape, found["counters_lost"][:8]))
    lines.append(
        line(
            found["counters_won"] >= 0.95,
            f"better than the seasonal naive at {found['counters_won']:.1%} of the counters"
            + (f"; not at {worse}{' …' if len(found['counters_lost']) > 8 else ''}" if worse else ""),
        )
    )
    for level in (80, 90):
        overall, share = found[f"coverage_{level}"], found[f"counters_covered_{level}"]
        months = found[f"counter_months_covered_{level}"]
        lines.append(
            line(
                abs(overall - level / 100) <= 0.02 and share >= 0.9,
                f"{level} % interval holds {overall:.1%} of the hours; within 5 points of {level} % at {share:.1%} of "
                f"the counters, and in {months:.1%} of the counters' months",
            )
        )
    return f"<h3>{html.escape(family)}</h3><ul>{''.join(lines)}</ul>"


def _worst_counters(metrics: pl.DataFrame, family: str) -> str:
    """The counters that carry most of the squared error."""
    found = worst_counters(metrics.filter(family=family).drop("family"), _WORST)
    measures = (
        "n",
        "truth_mean",
        "rmse",
        "wape",
        "bias",
        "skill_mean4",
        "skill_seasonal_naive",
        "coverage_90",
    )
    body = [
        [row["counter_id"], f"{row['share']:.1%}", *_cells(row, measures)]
        for row in found.iter_rows(named=True)
    ]
    head = ["counter", "of all squared error", *_labels(measures)]
    return f"<h3>The {len(body)} counters with most of the squared error</h3>{table(head, body)}"


def _lines(
    metrics: pl.DataFrame,
    families: Sequence[str],
    grouping: str,
    measure: str,
    title: str,
    label: str,
    *,
    percent: bool = False,
    level: float | None = None,
) -> str:
    """One measure by group, a line a family."""

    def draw(axes: Any) -> None:
        colours = iter(_COLOURS * len(families))
        for family in families:
            found = _rows(metrics, family, grouping)
            colour = _GREYS.get(family) or next(colours)
            values = [float("nan") if value is None else value for value in found[measure]]
            axes.plot(found["group"].to_list(), values, marker="o", ms=4, lw=1.4, color=colour, label=family)
        if level is not None:
            axes.axhline(level, color="#333333", lw=1, ls="--")
        elif not percent or measure == "wape":
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set_xlabel(label)
        axes.tick_params(
            axis="x", rotation=45 if metrics.filter(grouping=grouping)["group"].n_unique() > 8 else 0
        )
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.legend(frameon=False, fontsize=8)

    return image(title, draw, width=7.0)


def _heat(metrics: pl.DataFrame, family: str, measure: str, title: str, *, centred: bool) -> str:
    """A measure by weekday and hour."""
    found = (
        _rows(metrics, family, "weekday and hour")
        .pivot("subgroup", index="group", values=measure)
        .sort("group")
    )
    hours = sorted(name for name in found.columns if name != "group")
    values = found.select(hours).cast(pl.Float64).fill_null(float("nan")).to_numpy()

    def draw(axes: Any) -> None:
        known = values[values == values]
        top = float(abs(known).max()) if known.size else 1.0
        top = min(top, 0.6 if centred else 1.0) or 1.0
        picture = axes.imshow(
            values,
            aspect="auto",
            cmap="RdBu_r" if centred else "YlOrRd",
            vmin=-top if centred else 0,
            vmax=top,
        )
        axes.set_yticks(range(found.height), found["group"].to_list())
        axes.set_xticks(range(0, len(hours), 3), hours[::3])
        axes.set_xlabel("local hour")
        axes.set_title(title)
        axes.grid(visible=False)
        axes.figure.colorbar(picture, ax=axes, format=lambda value, _: f"{value:.0%}")

    return image(title, draw, width=7.0, height=3.0)


def _coverage_by_counter(metrics: pl.DataFrame, family: str) -> str:
    """How many counters have which coverage."""
    title = "Coverage by counter"

    def draw(axes: Any) -> None:
        found = _rows(metrics, family, "counter")
        bins = [0.5 + 0.025 * step for step in range(21)]
        for level, colour in ((80, "#9ecae1"), (90, "#1f77b4")):
            values = found[f"coverage_{level}"].drop_nulls().clip(0.5, 1.0).to_list()
            axes.hist(values, bins=bins, color=colour, alpha=0.7, label=f"{level} % interval")
            axes.axvline(level / 100, color=colour, lw=1.2, ls="--")
        axes.set_title(title)
        axes.set_xlabel("share of hours inside the interval")
        axes.set_ylabel("counters")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.legend(frameon=False, fontsize=8, loc="upper left")

    return image(title, draw, width=7.0)


def _affluence_table(families: Mapping[str, Any]) -> str:
    measures = (
        ("n", ",", "hours"),
        ("high_share", ".1%", "truly high"),
        ("accuracy", ".1%", "accuracy"),
        ("precision", ".1%", "precision"),
        ("recall", ".1%", "recall"),
        ("f1", ".3f", "F1"),
        ("brier", ".4f", "Brier"),
        ("brier_skill", ".1%", "Brier skill"),
    )
    body = [
        [name, *("–" if row[key] is None else format(row[key], form) for key, form, _ in measures)]
        for name, row in ((name, found["affluence"]["all"]) for name, found in families.items())
    ]
    return f"<div>{table(['family', *(label for *_, label in measures)], body)}</div>"


def _reliability(family: str, bins: Sequence[Mapping[str, Any]]) -> str:
    """Said probability against how often it came true."""
    title = f"Probability of a high hour: said and come true ({family})"

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#333333", lw=1, ls="--", label="perfect")
        said, true = [row["probability"] for row in bins], [row["high_share"] for row in bins]
        axes.plot(said, true, marker="o", ms=4, lw=1.4, color=_COLOURS[0], label="forecast")
        axes.set_title(title)
        axes.set_xlabel("probability said")
        axes.set_ylabel("share that came true")
        axes.legend(frameon=False, fontsize=8)

    return image(title, draw, width=5.5)


def image(title: str, draw: Callable[[Any], None], width: float = 7.0, height: float = 3.4) -> str:
    """A picture inside the page; `draw` is given its axes."""
    figure, axes = new_figure(width, height)
    draw(axes)
    data = base64.b64encode(png(figure)).decode("ascii")
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
