"""What a replay came to: skill over time, alarms, decisions, models and what training cost; policies side by side.

Belongs here: reading it out of a replay's home, and the page that shows it. Does not belong here: living through the
days (`bike_assets.replay`).
"""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

import polars as pl

from bike_assets.assets.monitoring import REPORT_JSON
from bike_assets.backtest_report import STYLE, image, table
from bike_assets.core.contracts import RETRAINING_DECISIONS
from bike_assets.replay import JOURNAL, Journal, Replay
from bike_assets.resources.registry import CHAMPION, ModelRegistry
from bike_assets.resources.warehouse import DuckDBWarehouse

REPORT_HTML: Final = "replay.html"
REPORT_JSON_FILE: Final = "replay.json"

_COLOURS: Final = ("#1f77b4", "#d95f02")

_SKILL = """
SELECT date_trunc('week', service_date)::DATE AS week, sum(hours) AS hours, sum(truth_sum) AS total,
       sum(truth_square_sum) AS squares, sum(squared_error_sum) AS errors, sum(mean4_squared_error_sum) AS baseline
FROM bike_traffic_analytics.forecast_accuracy WHERE horizon = 1 AND service_date BETWEEN ? AND ?
GROUP BY ALL ORDER BY week
"""
_SERVED = """
SELECT model_version AS version, min(service_date) AS first, max(service_date) AS last,
       count(DISTINCT service_date) AS days
FROM bike_traffic_predictions.predictions WHERE service_date BETWEEN ? AND ? GROUP BY ALL ORDER BY first
"""


def replay_result(replay: Replay) -> dict[str, Any]:
    """A replay's outcome, read from its home.

    Returns:
        What `bike-assets replay --json` prints of a policy: `weeks` (R² and skill of day-ahead forecasts), `alarms` (of
        each report's day), `decisions`, `models` (which served when), `trainings` with their seconds, `failures`,
        `champion`, `accuracy` of the whole range, `seconds`, `home` and the `thresholds`.
    """
    warehouse = DuckDBWarehouse(path=str(replay.settings.warehouse_path))
    runs = Journal.open(replay.settings.home / JOURNAL).runs
    days = [replay.first, replay.last]
    weekly = warehouse.query(_SKILL, days)
    weeks = [{"week": f"{row['week']}", **_measures(row)} for row in weekly.iter_rows(named=True)]
    decisions = warehouse.read(RETRAINING_DECISIONS, *days)
    trainings = [
        {"day": run["day"], "seconds": run["steps"]["trained_model"]}
        for run in runs
        if "trained_model" in run["steps"]
    ]
    champion = ModelRegistry.from_settings(replay.settings).by_alias(CHAMPION)
    return {
        "policy": replay.policies.name,
        "from": f"{replay.first}",
        "to": f"{replay.last}",
        "accuracy": _measures(weekly.select(pl.exclude("week").sum()).row(0, named=True)) if weeks else None,
        "weeks": weeks,
        "alarms": [
            {"day": day, **alarm} for day, found in _reports(replay) for alarm in found.get("alarms", ())
        ],
        "drift_share": {day: found["share"] for day, found in _reports(replay)},
        "decisions": [
            {"day": f"{row['service_date']}", "decision": row["decision"], "reasons": row["reasons"]}
            for row in decisions.iter_rows(named=True)
        ],
        "models": [
            {**row, "first": f"{row['first']}", "last": f"{row['last']}"}
            for row in warehouse.query(_SERVED, days).iter_rows(named=True)
        ],
        "champion": champion.version if champion else None,
        "trainings": trainings,
        "training_seconds": round(sum(each["seconds"] for each in trainings), 1),
        "failures": [
            {"day": run["day"], "what": run["what"], "error": run["error"]}
            for run in runs
            if not run["success"]
        ],
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "home": str(replay.settings.home),
        "thresholds": replay.policies.thresholds(),
    }


def report_html(results: Sequence[Mapping[str, Any]]) -> str:
    """One page with pictures and tables inside, the policies side by side; it needs no network.

    Args:
        results: of `replay_result`, one a policy, over the same days.
    """
    first = results[0]
    names = [result["policy"] for result in results]
    parts = [
        f"<h1>Replay of {first['from']} to {first['to']}</h1>",
        "<p class=quiet>Every day as it would have been: counts as published, "
        "forecasts as issued, decisions as taken.</p>",
        table(["", *names], _comparison(results)),
        "<h2>Skill over time</h2><p class=quiet>Day-ahead forecasts, 1 − RMSE / RMSE of the mean of "
        "four weeks, by week; a dot is an alarm about the network or the skill, a line a new champion.</p>",
        _skill_image(results),
    ]
    for result in results:
        title = html.escape(str(result["policy"]))
        parts += [
            f"<h2>{title}: models</h2>",
            table(
                ["version", "first forecast", "last", "days"],
                [[m["version"], m["first"], m["last"], f"{m['days']}"] for m in result["models"]],
            ),
            f"<h2>{title}: decisions</h2>",
            table(
                ["day", "decision", "reasons"],
                [[each["day"], each["decision"], each["reasons"]] for each in result["decisions"]],
            ),
            f"<h2>{title}: alarms</h2>",
            table(
                ["day", "about", "which", "why"],
                [[a["day"], a["about"], a["which"], a["why"]] for a in result["alarms"]],
            )
            if result["alarms"]
            else "<p>none</p>",
        ]
        if result["failures"]:
            parts += [
                f"<h2>{title}: runs that failed</h2>",
                table(
                    ["day", "run", "error"], [[f["day"], f["what"], f["error"]] for f in result["failures"]]
                ),
            ]
    if len(results) > 1:
        parts += ["<h2>Where the policies differ</h2>", table(["threshold", *names], _differences(results))]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Replay</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>"
    )


def _measures(row: Mapping[str, Any]) -> dict[str, float | int | None]:
    """R² and skill from sums."""
    hours, errors, baseline = float(row["hours"]), float(row["errors"]), float(row["baseline"])
    spread = float(row["squares"]) - float(row["total"]) ** 2 / hours
    return {
        "hours": int(hours),
        "r2": 1 - errors / spread if spread > 0 else None,
        "skill": 1 - (errors / baseline) ** 0.5 if baseline > 0 else None,
    }


def _reports(replay: Replay) -> list[tuple[str, dict[str, Any]]]:
    """What the drift report of each day found, in order."""
    return [
        (path.parent.name, json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(replay.settings.reports_dir.glob(f"*/{REPORT_JSON}"))
        if replay.first.isoformat() <= path.parent.name <= replay.last.isoformat()
    ]


def _comparison(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    def weeks_with(result: Mapping[str, Any], *about: str) -> str:
        return f"{len({alarm['day'] for alarm in result['alarms'] if alarm['about'] in about})}"

    lines: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "R², day ahead": lambda r: "–" if not r["accuracy"] else f"{r['accuracy']['r2']:.4f}",
        "skill, day ahead": lambda r: "–" if not r["accuracy"] else share(r["accuracy"]["skill"]),
        "reports": lambda r: f"{len(r['drift_share'])}",
        "of them alarmed: network": lambda r: weeks_with(r, "network"),
        "of them alarmed: skill": lambda r: weeks_with(r, "skill"),
        "of them alarmed: a counter drifts": lambda r: weeks_with(r, "counter"),
        "of them with a broken or new counter": lambda r: weeks_with(r, "incident", "new_counter"),
        "decisions to retrain": lambda r: (
            f"{sum(d['decision'].startswith('retrain') for d in r['decisions'])}"
        ),
        "trainings": lambda r: f"{len(r['trainings'])}",
        "training, seconds": lambda r: f"{r['training_seconds']:,.0f}",
        "models that served": lambda r: f"{len(r['models'])}",
        "champion at the end": lambda r: f"{r['champion']}",
        "runs that failed": lambda r: f"{len(r['failures'])}",
    }
    return [[name, *(form(result) for result in results)] for name, form in lines.items()]


def _differences(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Thresholds that are not the same in all policies."""
    rows = []
    for section, thresholds in results[0]["thresholds"].items():
        for name in thresholds:
            values = [f"{result['thresholds'][section][name]}" for result in results]
            if len(set(values)) > 1:
                rows.append([f"{section}.{name}", *values])
    return rows


def _skill_image(results: Sequence[Mapping[str, Any]]) -> str:
    def draw(axes: Any) -> None:
        for result, colour in zip(results, _COLOURS, strict=False):
            known = [each for each in result["weeks"] if each["skill"] is not None]
            skill = {date.fromisoformat(each["week"]): each["skill"] for each in known}
            axes.plot(list(skill), list(skill.values()), color=colour, label=result["policy"])
            told = {
                date.fromisoformat(alarm["day"]) - timedelta(days=7)
                for alarm in result["alarms"]
                if alarm["about"] in ("network", "skill")
            }
            axes.scatter(
                [day for day in skill if day in told],
                [skill[day] for day in skill if day in told],
                color=colour,
            )
            for model in result["models"][1:]:
                axes.axvline(date.fromisoformat(model["first"]), color=colour, lw=1, ls=":")
        axes.axhline(0, color="#999999", lw=1)
        axes.set_ylabel("skill")
        axes.legend(frameon=False)

    return image("Skill by week", draw, width=11.0)
