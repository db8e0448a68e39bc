"""The Dagster assets: thin shells that read, call `core`, and return what a person wants to see.

One module a stage, in the order the data flows: ingestion, transformation, forecasting, monitoring.
"""
