"""What the service remembers on disk, shared by its workers and kept over a restart.

Belongs here: the last good bundle, and the one that was rolled back. Does not belong here: deciding either. What
cannot be written is told and done without: a full disk must not stop a service that answers from memory.
"""

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bike_serving.registry import ModelRef

log = logging.getLogger("bike_serving")


class Memory:
    """Two small files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.last_good_path = folder / "last_good.json"
        self._quarantine_path = folder / "quarantine.json"
        self._quarantine: tuple[ModelRef, str] | None = None

    def last_good(self) -> ModelRef | None:
        """The bundle that served last, None if there was none.

        Raises:
            ValueError, TypeError, OSError: what is there cannot be read.
        """
        try:
            return ModelRef(**json.loads(self.last_good_path.read_bytes()))
        except FileNotFoundError:
            return None

    def remember(self, ref: ModelRef) -> None:
        """Note that this bundle serves well."""
        self._write(self.last_good_path, asdict(ref), "a restart without MLflow will not find the champion")

    def quarantine(self, ref: ModelRef, reason: str) -> None:
        """Note that this bundle was rolled back, for every worker and the next start."""
        self._quarantine = (ref, reason)
        self._write(
            self._quarantine_path,
            {"ref": asdict(ref), "reason": reason},
            "other workers find out for themselves, and a restart forgets it",
        )

    def quarantined(self) -> tuple[ModelRef, str] | None:
        """The bundle that was rolled back here or by another worker, and why."""
        try:
            noted = json.loads(self._quarantine_path.read_bytes())
            return ModelRef(**noted["ref"]), str(noted["reason"])
        except (OSError, ValueError, TypeError, KeyError):
            return self._quarantine

    def release(self) -> None:
        """Forget the quarantine: the registry names another bundle."""
        self._quarantine = None
        try:
            self._quarantine_path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed (%s): its bundle stays refused", self._quarantine_path, error)

    @staticmethod
    def _write(path: Path, content: dict[str, Any], otherwise: str) -> None:
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")  # workers write the same file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            log.warning("%s cannot be written (%s): %s", path, error, otherwise)
            try:
                temporary.unlink(missing_ok=True)
            except OSError:
                log.debug("%s stays", temporary)
