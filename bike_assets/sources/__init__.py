"""Where counts come from: one module a source, all with the interface of `base.CountsSource`.

Belongs here: choosing a source by its name. Does not belong here: formats, and what happens to the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from bike_assets.core.errors import PermanentError
from bike_assets.sources.base import CountsSource

SOURCE_NAMES = ("simulator", "archive", "paris")
"""The names `open_source` knows, the default first."""


@dataclass(frozen=True)
class Portal:
    """Where live counts are, and how they are fetched.

    Attributes:
        address: of an Opendatasoft portal, without a path.
        dataset: its data set.
        cache: folder for what was fetched and is final.
        refetch_days: for how many days after it was counted a day may still be corrected.
        api_key: for a quota of one's own; never shown.
    """

    address: str
    dataset: str
    cache: Path
    refetch_days: int = 14
    api_key: str = field(default="", repr=False)


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
    portal: Portal | None = None,
) -> CountsSource:
    """The source of that name. Nothing is read before it is asked for.

    Args:
        name: one of `SOURCE_NAMES`.
        data: files and folders; `archive` only, and there at least one.
        seed, counters, first_day, last_day, scenario, scenario_start: of `SimulatorSource`; `simulator` only.
        portal: where live counts are; `paris` only, and needed there.

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
    if name == "paris":
        from bike_assets.sources.opendatasoft import Dataset
        from bike_assets.sources.paris import ParisSource
        from bike_assets.sources.polite_http import PoliteClient

        if portal is None:
            raise PermanentError("paris: the portal is not named; give its address and data set")
        headers = {"Authorization": f"Apikey {portal.api_key}"} if portal.api_key else {}
        dataset = Dataset(PoliteClient(headers=headers), portal.address, portal.dataset)
        return ParisSource(dataset, portal.cache, portal.refetch_days)
    raise PermanentError(f"no source is called {name!r}; choose one of {', '.join(SOURCE_NAMES)}")
