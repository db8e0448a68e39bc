"""Where counts come from: one module a source, all with the interface of `base.CountsSource`.

Belongs here: choosing a source by its name. Does not belong here: formats, and what happens to the rows.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from bike_assets.core.errors import PermanentError
from bike_assets.sources.base import CountsSource

SOURCE_NAMES = ("simulator", "archive")
"""The names `open_source` knows, the default first."""


def open_source(
    name: str = "simulator",
    *,
    data: Sequence[Path] = (),
    seed: int = 7,
    counters: int = 12,
    first_day: date | None = None,
    last_day: date | None = None,
    scenario: str | None = None,
    scenario_start: date | None = None,
) -> CountsSource:
    """The source of that name. Nothing is read before it is asked for.

    Args:
        name: one of `SOURCE_NAMES`.
        data: files and folders; `archive` only, and there at least one.
        seed, counters, first_day, last_day, scenario, scenario_start: of `SimulatorSource`; `simulator` only.

    Raises:
        PermanentError: an unknown name, or arguments that do not go with the source.
    """
    if name == "simulator":
        from bike_assets.sources.simulator import (
            DEFAULT_FIRST_DAY,
            DEFAULT_LAST_DAY,
            Scenario,
            SimulatorSource,
        )

        if data:
            raise PermanentError("simulator: reads no files; choose source archive to read them")
        if scenario is not None and scenario not in tuple(Scenario):
            raise PermanentError(
                f"simulator: no scenario is called {scenario!r}; choose one of {', '.join(Scenario)}"
            )
        return SimulatorSource(
            seed=seed,
            counters=counters,
            first_day=first_day or DEFAULT_FIRST_DAY,
            last_day=last_day or DEFAULT_LAST_DAY,
            scenario=Scenario(scenario) if scenario is not None else None,
            scenario_start=scenario_start,
        )
    if name == "archive":
        from bike_assets.sources.archive import ArchiveSource

        return ArchiveSource(data)
    raise PermanentError(f"no source is called {name!r}; choose one of {', '.join(SOURCE_NAMES)}")
