"""dbt as the assets call it: over a window of partitions, without paying for what has not changed.

Belongs here: how dbt is started. Does not belong here: which models there are (see `dbt_project/`) and which assets
they become (`bike_assets.assets.transformation`).

dbt parses its whole project again whenever `--vars` or the place of the warehouse differ from those it parsed with.
So the window is given by environment variables, which are read when SQL is compiled and not when it is parsed, and what
was parsed is kept beside the warehouse it was parsed for.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import dagster as dg
import duckdb
from dagster_dbt import DbtCliInvocation, DbtCliResource
from packaging.version import Version, parse

from bike_assets.resources.warehouse import DuckDBWarehouse


class DbtResource(DbtCliResource):
    """The dbt command line with its artifacts in a folder of its own, `artifacts_dir`."""

    artifacts_dir: str

    @property
    def _cli_version(self) -> Version:
        """dagster-dbt starts a process a step to ask for the version of the package that is installed here."""
        return parse(version("dbt-core"))

    def build(self, context: Any, days: tuple[date, date] | None = None) -> DbtCliInvocation:
        """`dbt build` of what the step selected.

        Args:
            context: the step's.
            days: first and last partition to build, both included; every day by default.
        """
        with _environment(partition_environment(*days) if days else {}):
            return self.cli(
                ["build", "--exclude-resource-type", "unit_test"],  # of the SQL, not of the data
                context=context,
                target_path=Path(self.artifacts_dir),
            )


def partition_environment(first: date, last: date) -> dict[str, str]:
    """The environment that limits a build to some partitions, both ends included (macros/window.sql)."""
    return {"BIKE_FIRST_DATE": first.isoformat(), "BIKE_LAST_DATE": last.isoformat()}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment with some variables more, put back on leaving: dbt's process inherits it when it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class DbtInProcess(DbtResource):
    """dbt's models without dbt: compiled once, and run as SQL on every day, for what builds hundreds of days one after
    the other.

    Starting dbt takes four seconds, and running two models in a process where it is started takes half a second, of
    which the statements take a fifth. The tables are the same; dbt's tests, which are checks and change no table, are
    not run.
    """

    def build(self, context: Any, days: tuple[date, date] | None = None) -> "DbtModels":  # type: ignore[override]
        """The selected models of the step, built when its events are asked for.

        Args:
            context: the step's, with the resource `warehouse`.
            days: first and last partition to build, both included; needed by models that are built by partitions.
        """
        names = {key.path[-1] for key in context.selected_asset_keys}
        return DbtModels(self, context.resources.warehouse, names, days)


@dataclass(frozen=True)
class DbtModels:
    """Models to build, as dagster-dbt's invocations offer them."""

    dbt: DbtInProcess
    warehouse: DuckDBWarehouse
    names: Collection[str]
    days: tuple[date, date] | None

    def stream(self) -> Iterator[dg.Output[None]]:
        """Build the models, each after those it reads; an output each.

        Raises:
            Failure: a model cannot be built; the message is that of dbt or of the database.
        """
        for model in compiled_models(self.dbt.project_dir, self.dbt.artifacts_dir):
            if model.name not in self.names:
                continue
            try:
                with self.warehouse.connect() as connection:
                    model.build(connection, self.days)
            except duckdb.Error as error:
                reason = " ".join(str(error).split())
                raise dg.Failure(
                    f"dbt could not build {model.name}: {reason}", allow_retries=False
                ) from error
            yield dg.Output(None, output_name=model.name)


_MARKS: Final = (date(1111, 11, 11), date(2222, 12, 22))
"""Days that stand in compiled SQL where the window's first and last are put."""


@dataclass(frozen=True)
class CompiledModel:
    """A model as dbt compiled it for DuckDB, with marks where the days of its window stand.

    Attributes:
        name: the model's.
        relation: its table, quoted.
        by_days: whether its days are replaced, and not the whole table.
        select: what the table, or its days, are made of.
    """

    name: str
    relation: str
    by_days: bool
    select: str

    def build(self, connection: duckdb.DuckDBPyConnection, days: tuple[date, date] | None) -> None:
        """Replace the table or its days in one transaction, as dbt's materialisation of the model does.

        Raises:
            Failure: the model is built by days, and none are given.
            duckdb.Error: the database refused.
        """
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self.relation.rpartition('.')[0]}")
        if not self.by_days:
            connection.execute(f"CREATE OR REPLACE TABLE {self.relation} AS (\n{self.select}\n)")
            return
        if days is None:
            raise dg.Failure(f"{self.name} is built by days; say which", allow_retries=False)
        select = self.select
        for mark, day in zip(_MARKS, days, strict=True):
            select = select.replace(mark.isoformat(), day.isoformat())
        connection.execute("BEGIN")
        try:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {self.relation} AS (\n{select}\n) LIMIT 0")
            connection.execute(f"DELETE FROM {self.relation} WHERE service_date BETWEEN ? AND ?", [*days])  # noqa: S608
            connection.execute(f"INSERT INTO {self.relation} BY NAME (\n{select}\n)")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


@cache
def compiled_models(project_dir: str, artifacts_dir: str) -> tuple[CompiledModel, ...]:
    """All tables of the project, each after those it reads, compiled for the warehouse beside the artifacts.

    Raises:
        Failure: the project cannot be compiled, or a model is built in another way than those known here.
    """
    from dbt.cli.main import dbtRunner

    folders = ["--project-dir", project_dir, "--profiles-dir", project_dir, "--target-path", artifacts_dir]
    quietly = ["--log-path", artifacts_dir, "--log-level", "none", "--log-level-file", "none"]
    with _environment(partition_environment(*_MARKS)):
        done = dbtRunner().invoke(["compile", *folders, *quietly])
    if not done.success:
        raise dg.Failure(f"dbt cannot compile its project: {_dbt_error(done)}", allow_retries=False)
    compiled: Any = done.result
    nodes = {result.node.unique_id: result.node for result in compiled.results}
    order = TopologicalSorter({key: node.depends_on.nodes for key, node in nodes.items()}).static_order()
    models = []
    for node in (nodes[key] for key in order if key in nodes):
        if node.resource_type != "model" or node.config.materialized == "ephemeral":
            continue
        by_days = node.config.materialized == "incremental"
        if node.config.materialized != "table" and not (
            by_days and node.config.incremental_strategy == "append"
        ):
            raise dg.Failure(
                f"{node.name} is built as {node.config.materialized}, which only dbt itself can; use table",
                allow_retries=False,
            )
        models.append(CompiledModel(node.name, node.relation_name, by_days, node.compiled_code))
    return tuple(models)


def _dbt_error(result: Any) -> str:
    """What went wrong, in one line."""
    if result.exception is not None:
        return " ".join(str(result.exception).split())
    broken = [each for each in getattr(result.result, "results", ()) if str(each.status) in ("error", "fail")]
    return (
        "; ".join(f"{each.node.name}: {' '.join(str(each.message).split())}" for each in broken)
        or "no reason given"
    )
