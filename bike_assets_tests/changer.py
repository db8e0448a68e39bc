"""A process that changes who serves, many times over, each time in a child that may be killed at a step.

    python -m bike_assets_tests.changer FOLDER

Reads a JSON list of orders a line, as `[{"do": "promote", "version": "2", "kill_before": 4}]`, and answers with a list;
the orders of a line are carried out at once. A child is a fork of a process that has loaded everything and used
nothing, so that a change takes tenths of a second.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bike_assets.resources import audit as audit_module
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.bundles import BundleStore
from bike_assets.resources.championship import Championship, ChampionStore, Request
from bike_assets.resources.registry import CHAMPION, ModelRegistry
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.tables import registry_of

STEPS = (
    (AuditLog, "append"),
    (audit_module, "_write_whole"),
    (BundleStore, "publish"),
    (ModelRegistry, "set_alias"),
    (ModelRegistry, "drop_alias"),
    (ModelRegistry, "tag_version"),
)
"""Everything that changes something which outlives the process."""


def open_championship(folder: Path) -> Championship:
    """The championship of a folder that `registry_in` made."""
    return ChampionStore(folder=str(folder / "audit"), promoters=[], approvers=[]).open(
        registry_of(folder),
        BundleStore(bundles_dir=str(folder / "bundles"), keys_dir=str(folder / "keys")),
        DuckDBWarehouse(path=str(folder / "warehouse.duckdb")),
        AuditLog(folder=str(folder / "audit"), keys_dir=str(folder / "keys"), env="local"),
    )


def carry_out(folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked in this process."""
    title = open_championship(folder)
    request = Request("anna", "asked by a test", str(order.get("id", time.time_ns())))
    moved: list[float] = []
    _watch(order.get("kill_before", 0), moved)
    match order["do"]:
        case "promote":
            result = title.promote(title.registry.version(order["version"]), request)
        case "rollback":
            result = title.rollback(order.get("version"), request)
        case _:
            state = title.state()
            return {
                "champion": state.champion,
                "previous": state.previous,
                "unfinished": state.unfinished is not None,
                "faults": title.audit.verify(title.warehouse),
            }
    return {"outcome": result.outcome, "champion": result.champion, "moved_at": moved[-1] if moved else None}


def _watch(kill_before: int, moved: list[float]) -> None:
    """Count steps; end this process, as a power cut does, before the one of that number."""
    count = 0

    def step(do: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            found = do(*arguments, **named)
            if name == "set_alias" and arguments[1] == CHAMPION:
                moved.append(time.time())
            return found

        return counted

    for owner, name in STEPS:
        setattr(owner, name, step(getattr(owner, name), name))


def main() -> None:
    """Answer orders until there are no more; the orders of a line are carried out at once."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        orders = json.loads(line)
        children = []
        for order in orders:
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(read)
                try:
                    answer = carry_out(folder, order)
                except Exception as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                os.write(write, json.dumps(answer).encode())
                os._exit(0)
            os.close(write)
            children.append((child, read))
        answers = []
        for child, read in children:
            with os.fdopen(read, "rb") as pipe:
                text = pipe.read()
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            answers.append({"killed": killed, **(json.loads(text) if text else {})})
        print(json.dumps(answers), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
