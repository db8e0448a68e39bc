"""What Dagster loads: `dg dev`, the webserver, the daemon and every run start here."""

from bike_assets.build import build_defs
from bike_assets.settings import load_settings

defs = build_defs(load_settings())
