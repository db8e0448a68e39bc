"""The home folder, where a local platform keeps everything: Dagster's instance in it, and what it was filled from."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bike_assets.core.errors import PermanentError
from bike_assets.settings import REPOSITORY, Settings

if TYPE_CHECKING:
    import dagster as dg

_SOURCE_FILE: Final = "source.json"
_SOURCE_SETTINGS: Final = (
    "source",
    "data",
    "simulator_seed",
    "simulator_counters",
    "simulator_first_day",
    "simulator_last_day",
    "paris_portal",
    "paris_dataset",
    "weather",
    "weather_data",
)
_INSTANCE_TEMPLATE: Final = REPOSITORY / "deploy" / "dagster.local.yaml"


@contextmanager
def open_instance(settings: Settings, **overrides: Any) -> "Iterator[dg.DagsterInstance]":
    """Dagster's instance of a home, made when it is not there yet.

    Args:
        settings: where the home is.
        overrides: sections of `dagster.yaml` that are otherwise for as long as it is open.

    Raises:
        PermanentError: the folder cannot be written.
    """
    import dagster as dg
    from dagster._core.instance import InstanceRef

    prepare(settings)
    folder = str(deployed_instance(settings) or settings.dagster_home)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(folder, overrides=overrides)) as instance:
        yield instance


def deployed_instance(settings: Settings) -> Path | None:
    """Where the deployment keeps the configuration of its instance; None on a laptop, where a home has its own."""
    folder = os.environ.get("DAGSTER_HOME")
    return Path(folder) if folder and settings.env != "local" else None


def prepare(settings: Settings) -> None:
    """Make the home and what every process started in it needs: Dagster's configuration, DAGSTER_HOME and that the
    events of a range of partitions are stored together (`bike_assets.event_log`).

    Of a deployment only the home is made: its instance is what DAGSTER_HOME says already.

    Raises:
        PermanentError: the folder cannot be written.
    """
    os.environ["BIKE_HOME"] = str(settings.home)
    with _writing(settings):
        settings.home.mkdir(parents=True, exist_ok=True)
        if deployed_instance(settings):
            return
        settings.dagster_home.mkdir(exist_ok=True)
        text = _INSTANCE_TEMPLATE.read_text(encoding="utf-8")
        (settings.dagster_home / "dagster.yaml").write_text(
            text.replace("@DAGSTER_HOME@", str(settings.dagster_home)), encoding="utf-8"
        )
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")


@contextmanager
def _writing(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PermanentError(
            f"{settings.home} cannot be written: {error.strerror}; give another folder with --home"
        ) from error


def remember_source(settings: Settings) -> None:
    """Note in the home where its counts come from, so that a run started later reads the same source.

    Raises:
        PermanentError: the folder cannot be written, or holds the counts of another source, which this one would
            overwrite day by day.
    """
    known = recall_source(settings.home)
    if known and known["source"] != settings.source and settings.warehouse_path.exists():
        raise PermanentError(
            f"{settings.home} holds counts of the source {known['source']}; "
            f"give another --home for {settings.source}"
        )
    values = settings.model_dump(mode="json", include=set(_SOURCE_SETTINGS))
    # A later export seldom repeats what the earlier ones hold, and their days may be asked for again.
    earlier = [path for path in known.get("data", []) if Path(path).exists() and path not in values["data"]]
    values["data"] = [*earlier, *values["data"]]
    target = settings.home / _SOURCE_FILE
    temporary = target.with_suffix(".tmp")
    with _writing(settings):
        settings.home.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
        temporary.replace(target)


def recall_source(home: Path) -> dict[str, Any]:
    """The settings of the source that a home was filled from; none where it was not filled yet."""
    path = home.expanduser().resolve() / _SOURCE_FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # Homes of earlier releases know fewer settings.
        return {"source": found["source"]} | {name: found[name] for name in _SOURCE_SETTINGS if name in found}
    except (ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"{path} is damaged; delete it and name the source with --source") from error


def source_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that make another process read the same source."""
    files = {"data", "weather_data"}
    values = settings.model_dump(mode="json", include=set(_SOURCE_SETTINGS) - files)
    return {
        **{
            f"BIKE_{name.upper()}": os.pathsep.join(map(str, getattr(settings, name)))
            for name in sorted(files)
        },
        **{f"BIKE_{name.upper()}": str(value) for name, value in values.items()},
    }
