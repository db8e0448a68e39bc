"""`bike-assets model-card`: the card of a registered model, from its training and the home's newest backtest.

Belongs here: finding what the card says. Does not belong here: the text (`bike_assets.core.model_card`).
"""

import json
from pathlib import Path
from typing import Any

from bike_assets.assets.forecasting import card_facts
from bike_assets.backtest import RESULT_FILE
from bike_assets.core.errors import PermanentError
from bike_assets.core.model_card import holdout_table, model_card
from bike_assets.resources.registry import ModelRegistry
from bike_assets.settings import Settings


def champion_card(settings: Settings) -> str:
    """The card of the champion, in Markdown.

    Raises:
        PermanentError: there is no champion, or its training was too short to hold days out.
    """
    registry = ModelRegistry.from_settings(settings)
    version = registry.champion()
    holdout = registry.load_holdout(version)
    if holdout.is_empty():
        raise PermanentError(
            f"version {version.version} held no days out, so nothing can be said of its accuracy; train on more days"
        )
    forecaster = registry.load_forecaster(version)
    table = holdout_table(holdout, forecaster.affluence)
    return model_card(card_facts(version, forecaster), table, newest_backtest(settings.home))


def newest_backtest(home: Path) -> dict[str, Any] | None:
    """The result of the backtest that ended last in a home."""
    results = sorted((home / "backtests").glob(f"*/{RESULT_FILE}"), key=lambda path: path.stat().st_mtime)
    if not results:
        return None
    found = json.loads(results[-1].read_text(encoding="utf-8"))
    return dict(found)
