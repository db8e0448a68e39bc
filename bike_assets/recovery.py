"""What a killed process leaves behind, and one command at a time on a home.

Belongs here: telling a run that works from one whose process is gone, and giving back what the dead one held. Does
not belong here: repairing data. Tables are whole at any moment, because a partition is written in one transaction.

Dagster frees the pool place of a dead run in its daemon. A laptop has none running, and a command that followed
a killed one would wait for ever. Locks of the operating system end with their process, however it ends: that is
what tells the dead from the living.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import dagster as dg

from bike_assets.home import deployed_instance, open_instance
from bike_assets.settings import Settings

COMMAND_TAG: Final = "bike.command"
"""Tag of runs that a command executes in its own process, so that they live no longer than it."""

COMMAND_LOCK: Final = "command.lock"
SERVED_LOCK: Final = "up.lock"
"""Held by `bike-assets up`, whose processes execute every run that has no `COMMAND_TAG`."""

# A queued run needs no process: the next daemon starts it.
WORKING: Final = (
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)

_LOOK_AGAIN_SECONDS: Final = 0.5


@contextmanager
def only_command(settings: Settings, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other command works on the home, then keep others waiting.

    Args:
        settings: the home, which exists.
        say: is told, once, that there is something to wait for.
    """
    with (settings.home / COMMAND_LOCK).open("a") as lock:
        told = False
        while not _taken(lock.fileno(), fcntl.LOCK_EX):
            if not told:
                say(
                    f"another command is working on {settings.home}: waiting until it is done (Ctrl-C to give up)"
                )
                told = True
            time.sleep(_LOOK_AGAIN_SECONDS)
        yield


def recover(settings: Settings) -> None:
    """`end_dead_runs`, for whoever executes nothing itself; a command at work has done it already."""
    with (settings.home / COMMAND_LOCK).open("a") as lock:
        if _taken(lock.fileno(), fcntl.LOCK_EX):
            with open_instance(settings) as instance:
                end_dead_runs(settings, instance)


def end_dead_runs(settings: Settings, instance: dg.DagsterInstance) -> list[str]:
    """Mark the runs whose process is gone as failed and give back their places in pools.

    To be called while holding `only_command`: then every run of a command that is still in progress is dead.

    Returns:
        The ids of these runs.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=list(WORKING)))
    dead = [run for run in runs if COMMAND_TAG in run.tags]
    # A deployment watches the runs of its daemon itself, and they may be on another machine.
    if len(dead) < len(runs) and not deployed_instance(settings) and not _held(settings.home / SERVED_LOCK):
        dead = list(runs)
    for run in dead:
        instance.report_run_failed(run, "the process of this run was ended before it was done")
    storage = instance.event_log_storage
    for run_id in storage.get_concurrency_run_ids():
        holder = instance.get_run_by_id(run_id)
        if holder is None or holder.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
    return [run.run_id for run in dead]


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open() as lock:
        return not _taken(lock.fileno(), fcntl.LOCK_SH)
