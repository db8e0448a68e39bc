"""dbt as the assets call it: over a window of partitions, without paying for what has not changed.

Belongs here: how dbt is started. Does not belong here: which models there are (see `dbt_project/`) and which assets
they become (`bike_assets.assets.transformation`).

dbt parses its whole project again whenever `--vars` or the place of the warehouse differ from those it parsed with.
So the window is given by environment variables, which are read when SQL is compiled and not when it is parsed, and what
was parsed is kept beside the warehouse it was parsed for.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster_dbt import DbtCliInvocation, DbtCliResource
from packaging.version import Version, parse

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest


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
    """dbt as a library: parsed once a process, for what builds hundreds of days one after the other.

    Starting dbt takes four seconds, in which it builds a day several times over. The models built are the same; dbt's
    tests, which are checks and change no table, are not run.
    """

    def build(self, context: Any, days: tuple[date, date] | None = None) -> "DbtModels":  # type: ignore[override]
        """The selected models of the step, built when its events are asked for.

        Args:
            context: the step's.
            days: first and last partition to build, both included; every day by default.
        """
        names = sorted(key.path[-1] for key in context.selected_asset_keys)
        return DbtModels(self, names, days)


@dataclass(frozen=True)
class DbtModels:
    """Models to build, as dagster-dbt's invocations offer them."""

    dbt: DbtInProcess
    names: list[str]
    days: tuple[date, date] | None

    def stream(self) -> Iterator[dg.Output[None]]:
        """Build the models; an output each.

        Raises:
            Failure: a model cannot be built; the message is dbt's.
        """
        arguments = [
            "run",
            "--select",
            *self.names,
            "--project-dir",
            self.dbt.project_dir,
            "--profiles-dir",
            str(self.dbt.profiles_dir),
            "--target-path",
            self.dbt.artifacts_dir,
            "--log-path",
            self.dbt.artifacts_dir,
            "--log-level",
            "none",
            "--log-level-file",
            "none",
            "--no-write-json",
        ]
        from dbt.cli.main import dbtRunner

        manifest = _uncompiled(_parsed(self.dbt.project_dir, self.dbt.artifacts_dir))
        with _environment(partition_environment(*self.days) if self.days else {}):
            result = dbtRunner(manifest=manifest).invoke(arguments)
        if not result.success:
            raise dg.Failure(
                f"dbt could not build {', '.join(self.names)}: {_dbt_error(result)}", allow_retries=False
            )
        for done in getattr(
            result.result, "results", ()
        ):  # In the order of building: a model after those it reads.
            yield dg.Output(None, output_name=done.node.name)


@lru_cache(maxsize=2)
def _parsed(project_dir: str, artifacts_dir: str) -> "Manifest":
    """The project as dbt parsed it, for the warehouse beside the artifacts.

    Raises:
        Failure: the project cannot be parsed.
    """
    from dbt.cli.main import dbtRunner
    from dbt.contracts.graph.manifest import Manifest
    from dbt.plugins.manager import PluginManager

    # Every invocation looks through all installed packages for plugins, which takes a tenth of a second.
    PluginManager.get_prefixed_modules = cache(PluginManager.get_prefixed_modules)  # type: ignore[method-assign]

    parsed = dbtRunner().invoke(
        ["parse", "--project-dir", project_dir, "--profiles-dir", project_dir, "--target-path", artifacts_dir]
    )
    manifest = parsed.result
    if not isinstance(manifest, Manifest):
        raise dg.Failure(f"dbt cannot read its project: {_dbt_error(parsed)}", allow_retries=False)
    return manifest


def _uncompiled(manifest: "Manifest") -> "Manifest":
    """The manifest without the traces of an earlier invocation, which would leave out what is ephemeral."""
    from dbt.contracts.graph.nodes import SeedNode

    for node in manifest.nodes.values():
        if not isinstance(node, SeedNode):
            node.extra_ctes, node.extra_ctes_injected = [], False
            node.compiled, node.compiled_code = False, None
    return manifest


def _dbt_error(result: Any) -> str:
    """What went wrong, in one line."""
    if result.exception is not None:
        return " ".join(str(result.exception).split())
    broken = [each for each in getattr(result.result, "results", ()) if str(each.status) in ("error", "fail")]
    return (
        "; ".join(f"{each.node.name}: {' '.join(str(each.message).split())}" for each in broken)
        or "no reason given"
    )
