"""Follows the champion: loads each new bundle beside the one that serves, then swaps one reference.

Belongs here: which bundle serves now, why a newer one does not, and the thread that looks. Does not belong
here: HTTP, and what makes a bundle trustworthy (`bike_assets.core.bundle`).
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from datetime import time as dt_time
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import polars as pl

from bike_assets.core.bundle import BUNDLE_ID_PATTERN, Bundle, load_bundle, load_public_key
from bike_assets.core.errors import BikeError, BundleError
from bike_serving import loading
from bike_serving.bucket import BundleBucket
from bike_serving.forecasts import Computed, ForecastTable, dumps, iso
from bike_serving.memory import Memory
from bike_serving.metrics import Metrics, ServedModel
from bike_serving.probation import Record, worse
from bike_serving.registry import ModelRef
from bike_serving.settings import Settings

log = logging.getLogger("bike_serving")

_OLDER_TABLES = 4
"""Issue dates besides the newest whose look-up tables are kept: each is some megabytes."""

_LONGEST_RETRY_SECONDS = 60.0


T = TypeVar("T")

Compute = Callable[[Path, Path], Computed]
"""Computes what there is to compute of a bundle (its folder, the public key), as `loading.compute` does."""


class Registry(Protocol):
    """Says which bundle should be served."""

    def resolve(self) -> ModelRef:
        """The champion now; raises a BikeError when it cannot be told."""

    def close(self) -> None:
        """Give resources back."""


class Answer(NamedTuple):
    """The body of an answer and how many forecasts it holds."""

    body: bytes
    forecasts: int


class Champion:
    """One loaded bundle with everything a request needs. Never changes its answers."""

    def __init__(self, ref: ModelRef, bundle: Bundle, newest: ForecastTable | None = None) -> None:
        """Take a bundle, and the look-up table of its newest vintage where that was made already."""
        self.ref = ref
        self.bundle = bundle
        self.model_type = bundle.model_type
        self.loaded_at = datetime.now(UTC)
        self.serving_since = 0.0
        self.record = Record()
        self.newest = newest or ForecastTable.of(bundle.issue_date, bundle.forecast())
        self._older: OrderedDict[date, ForecastTable] = OrderedDict()
        self._features: tuple[date, pl.DataFrame] | None = None
        self._lock = threading.Lock()
        self.ref_json = dumps(asdict(ref))
        self._head = f'{{"model":{self.ref_json},"issue_date":"'.encode()
        self.counters_json = self._counters()

    @property
    def told(self) -> ServedModel:
        """What metrics tell of it."""
        return ServedModel(
            **asdict(self.ref),
            created_at=self.bundle.info.created_at.timestamp(),
            issue_date=datetime.combine(self.bundle.issue_date, dt_time(), UTC).timestamp(),
        )

    def ready_table(self, issue_date: date | None) -> ForecastTable | None:
        """The look-up table of an issue date (None: the newest) if it needs no computing."""
        if issue_date in (None, self.bundle.issue_date):
            return self.newest
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

    def answer(self, table: ForecastTable, counter_ids: Sequence[str], hours: Sequence[datetime]) -> Answer:
        """The answer to a request: forecasts of one table of this champion; repetitions are answered once.

        Raises:
            UnknownCountersError, OutsideWindowError: naming everything that has no forecast.
        """
        found = table.look_up(_once(counter_ids), _once(hours))
        day = table.issue_date_text.encode()
        return Answer(b'%b%b","forecasts":[%b]}' % (self._head, day, b",".join(found)), len(found))

    def features(self, issue_date: date) -> pl.DataFrame:
        """What the forecasts of an issue date were computed from; those asked for last are kept."""
        with self._lock:
            if (kept := self._features) and kept[0] == issue_date:
                return kept[1]
            features = self.bundle.features(issue_date)
            self._features = (issue_date, features)
            return features

    def _counters(self) -> str:
        columns = ("counter_id", "counter_name", "site_name", "latitude", "longitude", "last_seen")
        counters = [
            {
                **row,
                "last_seen": iso(row["last_seen"]),
                "has_forecast": row["counter_id"] in self.newest.counters,
            }
            for row in self.bundle.counters.select(columns).iter_rows(named=True)
        ]
        return f'{{"model":{self.ref_json},"counters":{dumps(counters)}}}'


def _once(values: Sequence[T]) -> Sequence[T]:
    return values if len(values) == 1 else list(dict.fromkeys(values))


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
    """Holds the champion that serves. `current` is read once a request; only the looking thread replaces it."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        metrics: Metrics,
        compute: Compute = loading.compute,
    ) -> None:
        self.current: Champion | None = None
        self.status = PollStatus()
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._compute = compute
        self._memory = Memory(settings.state_folder)
        self._previous: Champion | None = None
        self._rejections: dict[ModelRef, _Rejection] = {}
        self._first_wait = settings.poll_seconds
        self.looked = threading.Event()
        """Set once the first look is over, whatever came of it."""
        self._stop, self._look_now = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._poll, name="champion-poll", daemon=True)

    def start(self) -> None:
        """Look for the champion now and every `poll_seconds`, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a bundle being loaded is finished first, for at most some seconds."""
        self._stop.set()
        self._look_now.set()
        self._thread.join(timeout=10)
        self._registry.close()

    def look_soon(self) -> None:
        """Look now instead of at the end of `poll_seconds`: the registry said that something changed."""
        self._look_now.set()

    def refresh(self) -> None:
        """Look once. Never raises: whatever fails, what serves goes on serving and `status` says why."""
        try:
            self._judge()
            error = self._look()
        except Exception as caught:
            log.exception("unexpected failure while looking for the champion")
            error = f"unexpected {type(caught).__name__} while looking for the champion; see the log"
        if error is not None and error != self.status.error:
            log.warning("%s", error)
        self._metrics.degraded.set(error is not None)
        self.status = PollStatus(datetime.now(UTC), error)

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._look_now.clear()
            self.refresh()
            self.looked.set()
            self._look_now.wait(self._settings.poll_seconds)

    def _look(self) -> str | None:
        try:
            self._follow(self._registry.resolve())
        except BikeError as error:
            self._metrics.poll_failures.inc()
            return str(error) if self.current is not None else self._fall_back(str(error))
        return None

    def _follow(self, ref: ModelRef) -> None:
        if quarantine := self._memory.quarantined():
            self._keep_out(ref, *quarantine)
        if self.current is None or self.current.ref != ref:
            self._serve(self._try(ref))
            self._memory.remember(ref)
        self._rejections.clear()

    def _judge(self) -> None:
        """Take a new champion back when it answers worse than the one before it: at most once a champion."""
        new, before, rules = self.current, self._previous, self._settings.probation
        if new is None:
            return
        quarantine = self._memory.quarantined()
        if quarantine and quarantine[0] == new.ref:  # another worker has seen enough
            self._roll_back(new, quarantine[1])
        elif before is None:
            return
        elif reason := worse(new.record, before.record, rules):
            self._memory.quarantine(new.ref, reason)
            self._roll_back(new, reason)
        elif time.monotonic() - new.serving_since > rules.probation_seconds:
            self._previous = None  # it has proved itself, and its memory is wanted back

    def _roll_back(self, new: Champion, reason: str) -> None:
        before = self._previous
        if before is None:
            remembered = self._memory.last_good()
            if remembered is None or remembered == new.ref:
                return
            before = self._try(remembered)
        log.error("rolling back from version %s to %s: %s", new.ref.version, before.ref.version, reason)
        self._metrics.rollbacks.inc()
        self._take(before, previous=None)
        self._memory.remember(before.ref)

    def _keep_out(self, ref: ModelRef, bad: ModelRef, reason: str) -> None:
        """Refuse the champion that was rolled back, until the registry names another.

        Raises:
            BundleError: it is that one.
        """
        if ref != bad:
            self._memory.release()
            return
        raise BundleError(
            f"version {bad.version} of {bad.name} was rolled back: {reason}; "
            f"promote another version, or this one again after another"
        )

    def _try(self, ref: ModelRef) -> Champion:
        """Load a bundle; one that was refused is tried again ever more rarely, for it may still be arriving."""
        rejection = self._rejections.get(ref)
        if rejection and time.monotonic() < rejection.retry_at:
            raise BundleError(rejection.reason)
        try:
            return load_champion(self._settings, ref, self._compute)
        except Exception as error:
            if not isinstance(error, BikeError):
                log.exception("unexpected failure while loading bundle %s", ref.bundle_id)
            reason = str(error) or type(error).__name__
            wait = min(rejection.wait_seconds * 2, _LONGEST_RETRY_SECONDS) if rejection else self._first_wait
            if rejection is None or rejection.reason != reason:
                self._metrics.rejected_bundles.inc()
            self._rejections[ref] = _Rejection(reason, time.monotonic() + wait, wait)
            raise BundleError(reason) from error

    def _serve(self, champion: Champion) -> None:
        if self.current is not None:
            self._metrics.swaps.inc()
        self._take(champion, previous=self.current)

    def _take(self, champion: Champion, previous: Champion | None) -> None:
        champion.serving_since = time.monotonic()
        self._previous, self.current = previous, champion
        self._metrics.serves(champion.told)
        ref = champion.ref
        log.info("serving %s version %s, bundle %s", ref.name, ref.version, ref.bundle_id)

    def _fall_back(self, error: str) -> str:
        """Serve the last good bundle of an earlier run, when there is one; what to tell in either case."""
        path = self._memory.last_good_path
        try:
            remembered = self._memory.last_good()
            if remembered is None or remembered.name != self._settings.model_name:
                return error
            self._serve(self._try(remembered))
        except (OSError, ValueError, TypeError) as caught:
            return f"{error}; and {path}, which names the last good bundle, cannot be read ({caught})"
        except BikeError as caught:
            return f"{error}; and the last good bundle cannot be served: {caught}"
        return error


def load_champion(settings: Settings, ref: ModelRef, compute: Compute = loading.compute) -> Champion:
    """The bundle that the registry names, verified and ready to answer.

    What is computed is computed by `compute`, which may be another process. A bundle is named by its content, so that
    both read the same one or none.

    Raises:
        BundleError: it is not there, cannot be trusted, or is of another version.
        TransientError: the bucket that it is in cannot be reached.
    """
    if not BUNDLE_ID_PATTERN.fullmatch(ref.bundle_id):
        raise BundleError(f"{ref.bundle_id!r} names no bundle; promote the model again")
    if settings.bundles_url:
        _fetch(settings, ref.bundle_id)
    path = settings.bundles_path / ref.bundle_id
    computed = compute(path, settings.public_key_path)
    bundle = load_bundle(path, load_public_key(settings.public_key_path), computed.vintage)
    info = bundle.info
    if (info.model_name, info.model_version, info.run_id) != (ref.name, ref.version, ref.run_id):
        raise BundleError(
            f"bundle {ref.bundle_id} is of {info.model_name} version {info.model_version} "
            f"(run {info.run_id}), but the registry names it for {ref.name} version {ref.version} "
            f"(run {ref.run_id}); promote it again"
        )
    return Champion(ref, bundle, ForecastTable.unpacked(computed))


def _fetch(settings: Settings, bundle_id: str) -> None:
    bucket = BundleBucket(settings.bundles_url, settings.bundles_endpoint)
    try:
        bucket.fetch(bundle_id, settings.bundles_path)
    finally:
        bucket.close()


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
