"""Follows the champion: loads each new bundle beside the one that serves, then swaps one reference.

Belongs here: which bundle serves now, why a newer one does not, and the thread that looks. Does not belong
here: HTTP, and what makes a bundle trustworthy (`bike_assets.core.bundle`).
"""

import json
import logging
import os
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib import import_module
from typing import Any, Protocol

from bike_assets.core.bundle import BUNDLE_ID_PATTERN, Bundle, load_bundle, load_public_key
from bike_assets.core.errors import BikeError, BundleError
from bike_serving.forecasts import ForecastTable, dumps, iso
from bike_serving.metrics import Metrics
from bike_serving.registry import ModelRef
from bike_serving.settings import Settings

log = logging.getLogger("bike_serving")

_OLDER_TABLES = 4
"""Issue dates besides the newest whose look-up tables are kept: each is some megabytes."""

_LONGEST_RETRY_SECONDS = 60.0


class Registry(Protocol):
    """Says which bundle should be served."""

    def resolve(self) -> ModelRef:
        """The champion now; raises a BikeError when it cannot be told."""

    def close(self) -> None:
        """Give resources back."""


class Champion:
    """One loaded bundle with everything a request needs. Never changes its answers."""

    def __init__(self, ref: ModelRef, bundle: Bundle) -> None:
        self.ref = ref
        self.bundle = bundle
        self.loaded_at = datetime.now(UTC)
        self._newest = ForecastTable.of(bundle.issue_date, bundle.forecast())
        self._older: OrderedDict[date, ForecastTable] = OrderedDict()
        self._lock = threading.Lock()
        self.ref_json = dumps(asdict(ref))
        self.counters_json = self._counters()

    def ready_table(self, issue_date: date | None) -> ForecastTable | None:
        """The look-up table of an issue date (None: the newest) if it needs no computing."""
        if issue_date in (None, self.bundle.issue_date):
            return self._newest
        return self._older.get(issue_date) if issue_date else None

    def table(self, issue_date: date) -> ForecastTable:
        """The look-up table of an issue date, computed when it is not at hand (tenths of a second).

        Raises:
            IssueDateError: the bundle does not hold that day's history.
        """
        with self._lock:
            if ready := self.ready_table(issue_date):
                return ready
            table = ForecastTable.of(issue_date, self.bundle.forecast(issue_date=issue_date))
            self._older[issue_date] = table
            while len(self._older) > _OLDER_TABLES:
                self._older.popitem(last=False)
            return table

    def _counters(self) -> str:
        columns = ("counter_id", "counter_name", "site_name", "latitude", "longitude", "last_seen")
        counters = [
            {
                **row,
                "last_seen": iso(row["last_seen"]),
                "has_forecast": row["counter_id"] in self._newest.rows,
            }
            for row in self.bundle.counters.select(columns).iter_rows(named=True)
        ]
        return f'{{"model":{self.ref_json},"counters":{dumps(counters)}}}'


@dataclass(frozen=True)
class PollStatus:
    """How the last look at the registry went; without error, the champion it names is the one that serves."""

    at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Rejection:
    reason: str
    retry_at: float
    wait_seconds: float


class ChampionHolder:
    """Holds the champion that serves. `current` is read once a request; only `refresh` replaces it."""

    def __init__(self, settings: Settings, registry: Registry, metrics: Metrics) -> None:
        self.current: Champion | None = None
        self.status = PollStatus()
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._rejections: dict[ModelRef, _Rejection] = {}
        self._first_wait = settings.poll_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="champion-poll", daemon=True)

    def start(self) -> None:
        """Look for the champion now and every `poll_seconds`, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a bundle being loaded is finished first, for at most some seconds."""
        self._stop.set()
        self._thread.join(timeout=10)
        self._registry.close()

    def refresh(self) -> None:
        """Look once. Never raises: whatever fails, what serves goes on serving and `status` says why."""
        try:
            error = self._look()
        except Exception as caught:
            log.exception("unexpected failure while looking for the champion")
            error = f"unexpected {type(caught).__name__} while looking for the champion; see the log"
        if error is not None and error != self.status.error:
            log.warning("%s", error)
        self.status = PollStatus(datetime.now(UTC), error)

    def _poll(self) -> None:
        import_module("catboost")  # seconds of importing that the first champion need not wait for
        while not self._stop.is_set():
            self.refresh()
            self._stop.wait(self._settings.poll_seconds)

    def _look(self) -> str | None:
        try:
            self._follow(self._registry.resolve())
        except BikeError as error:
            self._metrics.poll_failures.inc()
            return str(error) if self.current is not None else self._fall_back(str(error))
        return None

    def _follow(self, ref: ModelRef) -> None:
        if self.current is None or self.current.ref != ref:
            self._serve(self._try(ref))
            self._remember(ref)
        self._rejections.clear()

    def _try(self, ref: ModelRef) -> Champion:
        """Load a bundle; one that was refused is tried again ever more rarely, for it may still be arriving."""
        rejection = self._rejections.get(ref)
        if rejection and time.monotonic() < rejection.retry_at:
            raise BundleError(rejection.reason)
        try:
            return self._load(ref)
        except Exception as error:
            if not isinstance(error, BikeError):
                log.exception("unexpected failure while loading bundle %s", ref.bundle_id)
            reason = str(error) or type(error).__name__
            wait = min(rejection.wait_seconds * 2, _LONGEST_RETRY_SECONDS) if rejection else self._first_wait
            if rejection is None or rejection.reason != reason:
                self._metrics.rejected_bundles.inc()
            self._rejections[ref] = _Rejection(reason, time.monotonic() + wait, wait)
            raise BundleError(reason) from error

    def _load(self, ref: ModelRef) -> Champion:
        if not BUNDLE_ID_PATTERN.fullmatch(ref.bundle_id):
            raise BundleError(f"{ref.bundle_id!r} names no bundle; promote the model again")
        public_key = load_public_key(self._settings.public_key_path)
        bundle = load_bundle(self._settings.bundles_path / ref.bundle_id, public_key)
        info = bundle.info
        if (info.model_name, info.model_version, info.run_id) != (ref.name, ref.version, ref.run_id):
            raise BundleError(
                f"bundle {ref.bundle_id} is of {info.model_name} version {info.model_version} "
                f"(run {info.run_id}), but the registry names it for {ref.name} version {ref.version} "
                f"(run {ref.run_id}); promote it again"
            )
        return Champion(ref, bundle)

    def _serve(self, champion: Champion) -> None:
        previous, self.current = self.current, champion
        if previous is not None:
            self._metrics.swaps.inc()
        log.info(
            "serving %s version %s, bundle %s",
            champion.ref.name,
            champion.ref.version,
            champion.ref.bundle_id,
        )

    def _fall_back(self, error: str) -> str:
        """Serve the last good bundle of an earlier run, when there is one; what to tell in either case."""
        path = self._settings.state_path
        try:
            remembered = ModelRef(**json.loads(path.read_bytes()))
            if remembered.name != self._settings.model_name:
                return error
            self._serve(self._try(remembered))
        except FileNotFoundError:
            return error
        except (OSError, ValueError, TypeError) as caught:
            return f"{error}; and {path}, which names the last good bundle, cannot be read ({caught})"
        except BikeError as caught:
            return f"{error}; and the last good bundle cannot be served: {caught}"
        return error

    def _remember(self, ref: ModelRef) -> None:
        path = self._settings.state_path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            with temporary.open("w") as file:
                json.dump(asdict(ref), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): a restart without MLflow will not find the champion", path, error
            )


def describe(champion: Champion) -> dict[str, Any]:
    """What is loaded, for people: where the model comes from, what it can answer, how good it was."""
    bundle, info = champion.bundle, champion.bundle.info
    first, last = champion.table(bundle.issue_date).window
    return {
        "model": asdict(champion.ref),
        "git_commit": info.git_commit,
        "data_hash": info.data_hash,
        "trained_until": info.trained_until,
        "created_at": info.created_at,
        "loaded_at": champion.loaded_at,
        "horizons": info.horizons,
        "issue_dates": {"first": bundle.first_issue_date, "last": bundle.issue_date},
        "window": {"first": first, "last": last},
        "counters": bundle.counters.height,
        "metrics": info.metrics,
    }
