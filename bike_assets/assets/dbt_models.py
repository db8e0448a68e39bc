"""Names of the dbt models, by how they are built. What they hold: `dbt_project/models/marts`.

Belongs here: names alone, so that jobs and commands can name them without importing dbt.
"""

from typing import Final

CLEANING_MODELS: Final = ("cleaned_counts", "quarantined_counts")
"""Built a partition a day."""

FLAG_LOOKBACK_DAYS: Final = 28
"""Days before a partition that its flags look at; the variable `lookback_days` of the dbt project."""

DESCRIBING_MODELS: Final = (
    "counters",
    "counter_history",
    "counter_months",
    "outages",
    "daily_traffic",
    "network_totals",
    "export_differences",
)
"""Tables for people, and for what needs to know the counters; built whole."""

ACCURACY_MODELS: Final = ("forecast_accuracy", "model_history")
"""What forecasts were worth, and which models made them; built whole."""
