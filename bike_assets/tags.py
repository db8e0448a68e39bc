"""Groups, owners and kinds of assets, each stated once. A test holds that every asset has all of them."""

from typing import Final

DATA_TEAM: Final = "team:data"
"""Answers for counts: sources, cleaning, quality."""

ML_TEAM: Final = "team:ml"
"""Answers for forecasts: features, models, drift."""

INGESTION: Final = "ingestion"
CLEANING: Final = "cleaning"
FORECASTING: Final = "forecasting"
MONITORING: Final = "monitoring"

WAREHOUSE_POOL: Final = "duckdb"
"""Everything that opens the warehouse file: DuckDB lets one process at a time write."""
