"""The Dagster code location: from the city's raw counts to the champion's forecasts.

`core` holds the domain and imports no orchestrator; `sources`, `resources`, `assets`, `checks` and `sensors`
are the shell around it; `build.build_defs` puts them together.
"""
