"""The home folder: where a local platform keeps everything, and Dagster's instance in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from bike_assets.core.errors import PermanentError
from bike_assets.settings import REPOSITORY, Settings

_INSTANCE_TEMPLATE: Final = REPOSITORY / "deploy" / "dagster.local.yaml"


@contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Dagster's instance of a home, made when it is not there yet.

    Raises:
        PermanentError: the folder cannot be written.
    """
    prepare(settings)
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        yield instance


def prepare(settings: Settings) -> None:
    """Make the home and what every process started in it needs: Dagster's configuration and DAGSTER_HOME.

    Raises:
        PermanentError: the folder cannot be written.
    """
    try:
        settings.dagster_home.mkdir(parents=True, exist_ok=True)
        text = _INSTANCE_TEMPLATE.read_text(encoding="utf-8")
        (settings.dagster_home / "dagster.yaml").write_text(
            text.replace("@DAGSTER_HOME@", str(settings.dagster_home)), encoding="utf-8"
        )
    except OSError as error:
        raise PermanentError(
            f"{settings.home} cannot be written: {error.strerror}; give another folder with --home"
        ) from error
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    os.environ["BIKE_HOME"] = str(settings.home)
