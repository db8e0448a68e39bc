"""Starts the emulator of BigQuery, in an interpreter of its own: it needs Python 3.13 and another DuckDB than ours.

Belongs here: what lets dbt-bigquery work against local-bigquery 0.3.2 without a network. Three things are mended: its
option TimeZone would download an extension of DuckDB; a job that made a table does not name it as its destination,
which dbt-bigquery reads; and a MERGE into a table that must be asked by days is refused although it names them in its
clauses, where BigQuery looks for them too. Run by `bike_assets_tests.emulators.processes`.
"""

import sys
import threading
from importlib.metadata import entry_points
from typing import Any

import duckdb
from duckdb_extensions import import_extension

_connect = duckdb.connect


def _connect_in_utc(*arguments: Any, config: dict[str, Any] | None = None, **options: Any) -> Any:
    kept = {name: value for name, value in (config or {}).items() if name != "TimeZone"}
    connection = _connect(*arguments, config=kept, **options)
    connection.execute("SET GLOBAL TimeZone='UTC'")
    return connection


for extension in ("ducklake", "spatial"):
    import_extension(extension)
duckdb.connect = _connect_in_utc

from local_bigquery.jobs import merge, runner  # noqa: E402  only now, when the connection is mended
from local_bigquery.sql.rules import tables  # noqa: E402
from sqlglot import exp  # noqa: E402

_query = runner._query


def _query_with_destination(job: Any, session: Any, running: Any) -> Any:
    done = _query(job, session, running)
    query, config = done.query, job.configuration.query
    if (
        query
        and not config.destinationTable
        and query.ddlTargetTable
        and (query.statementType or "").startswith("CREATE_TABLE")
    ):
        config.destinationTable = query.ddlTargetTable
    return done


runner._query = _query_with_destination

_merge, _check = merge.run, tables._check
_merging = threading.local()


def _merge_by_days(cursor: Any, tree: exp.Merge, context: Any) -> Any:
    named = {column.name for when in tree.find_all(exp.When) for column in when.find_all(exp.Column)}
    _merging.by_days = "service_date" in named
    try:
        return _merge(cursor, tree, context)
    finally:
        _merging.by_days = False


def _check_unless_merging(tree: exp.Expression, table: exp.Table, is_target: bool) -> None:
    _check(tree, table, is_target or getattr(_merging, "by_days", False))


merge.run, tables._check = _merge_by_days, _check_unless_merging
(command,) = (entry for entry in entry_points(group="console_scripts") if entry.name == "local-bigquery")
sys.exit(command.load()())
