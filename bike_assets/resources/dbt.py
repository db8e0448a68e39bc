"""dbt as the assets call it: over a window of partitions, without paying for what has not changed.

Belongs here: how dbt is started. Does not belong here: which models there are (see `dbt_project/`) and which assets
they become (`bike_assets.assets.transformation`).

dbt parses its whole project again whenever `--vars` or the place of the warehouse differ from those it parsed with.
So the window is given by environment variables, which cost the files that read them alone, and what was parsed is
kept beside the warehouse it was parsed for.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dagster_dbt import DbtCliInvocation, DbtCliResource
from packaging.version import Version, parse


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
