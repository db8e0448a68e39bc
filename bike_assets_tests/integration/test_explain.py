"""Why a forecast is what it is, and the champion's card, over the home that the demo filled."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from bike_assets.core.contracts import PREDICTIONS
from bike_assets.core.errors import PermanentError
from bike_assets.explain import explain_hour
from bike_assets.model_card import champion_card
from bike_assets.resources.registry import ModelRegistry
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.homes import DemoHome

pytestmark = pytest.mark.integration


def test_parts_sum_to_the_forecast_that_was_issued(demo_home: DemoHome) -> None:
    warehouse = DuckDBWarehouse(path=str(demo_home.settings.warehouse_path))
    row = warehouse.read(PREDICTIONS).filter(pl.col("horizon") == 3).sort("forecast").row(-1, named=True)
    found = explain_hour(demo_home.settings, row["counter_id"], row["target_ts"], row["service_date"])
    assert found["forecast"] == pytest.approx(row["forecast"])
    assert found["horizon"] == 3
    assert sum(part["bicycles"] for part in found["parts"]) == pytest.approx(row["forecast"])
    latest = explain_hour(demo_home.settings, row["counter_id"], row["target_ts"])
    assert latest["horizon"] == 1  # by default as late as counts allow


def test_what_cannot_be_explained_says_what_to_give(demo_home: DemoHome) -> None:
    settings = demo_home.settings
    hour = datetime(2024, 12, 20, 8)  # noqa: DTZ001  local time, as typed
    with pytest.raises(PermanentError, match="no counter; give an id"):
        explain_hour(settings, "nowhere", hour)
    known = DuckDBWarehouse(path=str(settings.warehouse_path)).read(PREDICTIONS, columns=("counter_id",))
    with pytest.raises(PermanentError, match="another --issue-date"):
        explain_hour(settings, known["counter_id"][0], hour, hour.date() - timedelta(days=7))


def test_the_registry_shows_the_card_of_every_version(demo_home: DemoHome) -> None:
    registry = ModelRegistry.from_settings(demo_home.settings)
    champion = registry.champion()
    card = champion_card(demo_home.settings)
    assert f"version {champion.version}" in card
    assert champion.trained_until.isoformat() in card
    described = registry.client().get_model_version(champion.name, champion.version).description
    assert described.splitlines()[0] == card.splitlines()[0]
