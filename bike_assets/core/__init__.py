"""The domain as pure functions and types: time rules, table contracts, features, model, decisions, bundle.

Belongs here: everything that training and serving must agree on. Does not belong here: Dagster, MLflow, dbt,
web frameworks, reading the clock, and knowing where a file or a table lives.
"""
