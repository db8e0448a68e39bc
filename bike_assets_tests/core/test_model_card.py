"""The card says what was measured on days held out, and nothing that was not measured."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from bike_assets.core.affluence import Affluence
from bike_assets.core.model import HOLDOUT_SCHEMA
from bike_assets.core.model_card import CardFacts, holdout_table, model_card, worst_counters

FACTS = CardFacts(
    "bike-traffic", "7", "catboost", "2024-01-01", date(2024, 5, 28), 28, "d" * 64, "c" * 40, counters=3
)


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    start = datetime(2024, 5, 1, tzinfo=UTC)
    rows = [
        (day.date(), counter, day + timedelta(hours=hour), 1, float(truth), float(truth + miss), 10.0)
        for day in (start + timedelta(days=d) for d in range(7))
        for hour in range(20)
        for counter, truth, miss in (("a", 10 + hour, 1), ("b", 200 + hour, 30), ("new", 5 + hour, 0))
    ]
    holdout = pl.DataFrame(rows, schema=HOLDOUT_SCHEMA, orient="row")
    return holdout_table(holdout, Affluence(thresholds={"a": 15.0, "b": 210.0}))


def test_worst_counters_carry_the_squared_error(table: pl.DataFrame) -> None:
    found = worst_counters(table, 2)
    assert found["counter_id"].to_list() == ["b", "a"]
    assert found["share"].to_list() == pytest.approx([900 / 901, 1 / 901])


def test_the_card_has_the_measures_of_every_group_and_names_the_data(table: pl.DataFrame) -> None:
    card = model_card(FACTS, table)
    for text in (
        "version 7",
        "catboost",
        "`" + "d" * 16 + "`",
        "Not for:",
        "## Limits",
        "420 forecast hours",
    ):
        assert text in card
    for group in (
        "| 1 |",
        "| 10 to 30 |",
        "| 100 and more |",
        "| no history |",
        "| public holiday |",
        "| b |",
    ):
        assert group in card, group


def test_coverage_comes_from_a_backtest_of_the_family_or_not_at_all(table: pl.DataFrame) -> None:
    assert "holds" not in model_card(FACTS, table)
    verdict = {
        "coverage_80": 0.801,
        "coverage_90": 0.9,
        "counters_covered_80": 0.95,
        "counters_covered_90": 1.0,
    }
    verdict |= {"counters_won": 1.0, "months_lost": [], "horizons_lost": []}  # type: ignore[dict-item]
    result = {
        "command": "bike-assets backtest --from 2024-01-01",
        "config": {"first": "2024-01-01", "last": "2024-02-01", "weather": "known"},
        "origins": [{}],
        "families": {
            "catboost": {
                "verdict": verdict,
                "affluence": {"all": {"accuracy": 0.9, "f1": 0.8, "brier": 0.07}},
            }
        },
    }
    card = model_card(FACTS, table, result)
    assert "bike-assets backtest --from 2024-01-01" in card
    assert "holds 80.1% of the hours" in card
    other = CardFacts(**{**FACTS.__dict__, "family": "random_forest"})
    assert "holds" not in model_card(other, table, result)
