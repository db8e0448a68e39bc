"""The model card (Mitchell et al. 2019): what a model is for, what it learned from, how good it is, its limits.

Belongs here: the text, made from numbers of days the model was not trained on. Does not belong here: where models,
days and backtests are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import polars as pl

from bike_assets.core.affluence import Affluence
from bike_assets.core.backtest import evaluate
from bike_assets.core.metrics import INTERVAL_COLUMNS

WORST: Final = 10

_GROUPS: Final = (
    ("horizon", "days ahead"),
    ("level", "mean count of the counter"),
    ("hour band", "hour"),
    ("day", "day"),
    ("holiday", "kind of day"),
)
_COLUMNS: Final = (
    ("n", "hours", ","),
    ("r2", "R²", ".3f"),
    ("rmse", "RMSE", ".1f"),
    ("mae", "MAE", ".1f"),
    ("wape", "WAPE", ".1%"),
    ("bias_share", "bias", "+.1%"),
    ("geh5_share", "GEH < 5", ".1%"),
    ("skill_mean4", "skill", ".1%"),
)


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides accuracy.

    Attributes:
        name: registered model.
        version: its version.
        family: family of models.
        trained_from: first issue date trained on.
        trained_until: last local day of counts the training saw.
        held_out_days: last of these days, which a model was fitted without to measure and calibrate.
        data_hash: of what it was trained on.
        git_commit: of the code.
        counters: counters it was trained on.
    """

    name: str
    version: str
    family: str
    trained_from: str
    trained_until: date
    held_out_days: int
    data_hash: str
    git_commit: str
    counters: int


def holdout_table(holdout: pl.DataFrame, affluence: Affluence) -> pl.DataFrame:
    """The measures of `evaluate` over a training's held-out days.

    Intervals were calibrated on these very days, so their coverage is left out: only a backtest can tell it.

    Args:
        holdout: rows of `HOLDOUT_SCHEMA`, at least one.
        affluence: of the same training; its thresholds are the counters' mean counts.
    """
    means = pl.DataFrame(
        {"counter_id": list(affluence.thresholds), "mean_count": list(affluence.thresholds.values())},
        schema={"counter_id": pl.String, "mean_count": pl.Float64},
    )
    unknown = ("seasonal_naive", "mase_scale", *INTERVAL_COLUMNS)
    return evaluate(
        holdout.join(means, on="counter_id", how="left").with_columns(
            *(pl.lit(None, pl.Float64).alias(name) for name in unknown), is_trusted=pl.lit(True)
        )
    )


def worst_counters(table: pl.DataFrame, count: int = WORST) -> pl.DataFrame:
    """The counters that carry most of the squared error.

    Args:
        table: what `evaluate` or `holdout_table` returns, of one family.
        count: how many.

    Returns:
        counter_id, share (of all squared error) and the measures, largest share first.
    """
    squared = pl.col("n") * pl.col("rmse") ** 2
    return (
        table.filter(rows="all", grouping="counter")
        .rename({"group": "counter_id"})
        .drop("rows", "grouping", "subgroup")
        .with_columns(share=squared / squared.sum())
        .select("counter_id", "share", pl.exclude("counter_id", "share"))
        .sort("share", "counter_id", descending=[True, False])
        .head(count)
    )


def model_card(facts: CardFacts, table: pl.DataFrame, backtest: Mapping[str, Any] | None = None) -> str:
    """The card, in Markdown.

    Args:
        facts: what the model is.
        table: `holdout_table` of its training.
        backtest: result of a backtest on the same home, when there is one; its family must be the card's.
    """
    hours = table.filter(rows="all", grouping="overall")["n"].item()
    parts = [
        f"# Model card: {facts.name}, version {facts.version}",
        "Written by `bike-assets model-card`; every number below is of days the scored model was not trained on.",
        "## Intended use",
        "Hourly bicycle counts at the city's automatic counters, for the day of issue and the six days after, issued "
        "at 07:00 local time from counts up to the day before. For planning, information and monitoring of cycling "
        "traffic, together with the intervals.",
        "Not for: counting people, single streets without a counter, safety-critical control, or hours further ahead.",
        "## Model",
        f"Family `{facts.family}`: what recent days of the same kind say, times a learned correction; 80 % and 90 % "
        "intervals are conformal. One model for all counters and horizons.",
        "## Data",
        f"Issue dates {facts.trained_from} to {facts.trained_until}, {facts.counters} counters; data "
        f"`{facts.data_hash[:16]}`, code `{facts.git_commit[:12]}`. Impossible counts, and days on which a counter was "
        "stuck or drifting, were left out; outages were not. The counts hold no personal data.",
        f"## Accuracy on the last {facts.held_out_days} days of the training's counts",
        f"{hours:,} forecast hours, of a model fitted without these days. Errors are in bicycles an hour; skill is "
        "1 − RMSE / RMSE of the mean of the last four same hours of the week.",
    ]
    for grouping, label in _GROUPS:
        found = table.filter(rows="all", grouping=grouping)
        parts.append(_table(label, found["group"], found))
    worst = worst_counters(table)
    parts += [
        "### Where it fails",
        f"The {worst.height} counters with most of the squared error hold {worst['share'].sum():.0%} of it:",
        _table("counter", worst["counter_id"], worst, first=("share", "of all squared error", ".1%")),
        "## Intervals, and the seasonal naive",
        _backtest_text(facts, backtest),
        "## Limits",
        "- Strikes, demonstrations, closures and new lanes are unknown until they show in the counts of a day before.\n"
        "- An outage is forecast as traffic until it shows; then the forecast follows it down.\n"
        "- Late corrections by the publisher were already in the data that this was measured on.\n"
        "- Days of a kind seldom seen (public holidays, snow) have few examples, and the largest errors.\n"
        "- A counter with little history rests on the city's daily profile.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(
    label: str, groups: Iterable[str], rows: pl.DataFrame, first: tuple[str, str, str] | None = None
) -> str:
    columns: Sequence[tuple[str, str, str]] = (*([first] if first else []), *_COLUMNS)
    lines = [
        f"| {label} | {' | '.join(name for _, name, _ in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for group, row in zip(groups, rows.iter_rows(named=True), strict=True):
        cells = ("–" if row[key] is None else format(row[key], form) for key, _, form in columns)
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _backtest_text(facts: CardFacts, backtest: Mapping[str, Any] | None) -> str:
    found = (backtest or {}).get("families", {}).get(facts.family)
    if backtest is None or found is None:
        return (
            "Not measured here: intervals are calibrated on the days above. `bike-assets backtest` measures their "
            "coverage, per counter and month, and the skill against the seasonal naive."
        )
    judged, affluence = found["verdict"], found["affluence"]["all"]
    config = backtest["config"]
    return (
        f"From `{backtest['command']}`: issue dates {config['first']} to {config['last']}, "
        f"{len(backtest['origins'])} training(s), weather {config['weather']}.\n\n"
        f"- The 80 % interval holds {judged['coverage_80']:.1%} of the hours, the 90 % interval "
        f"{judged['coverage_90']:.1%}; within five points at {judged['counters_covered_80']:.0%} and "
        f"{judged['counters_covered_90']:.0%} of the counters.\n"
        f"- Better than the seasonal naive at {judged['counters_won']:.1%} of the counters; worse in "
        f"{len(judged['months_lost'])} months and at {len(judged['horizons_lost'])} horizons.\n"
        f"- High or low against the counter's own mean: accuracy {affluence['accuracy']:.1%}, F1 "
        f"{affluence['f1']:.3f}, Brier score {affluence['brier']:.3f}."
    )
