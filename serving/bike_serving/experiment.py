"""A challenger beside the champion: in shadow, where nobody is answered by it, or on a share of callers or counters.

Belongs here: following the challenger, deciding who is answered by whom, comparing answers. Does not belong here: which
of the two is better. That is known when the hours are counted, and said by the platform's `experiment_report`.

An experiment makes no request fail: a challenger that is not there, is older than the champion or knows fewer counters
takes no part, and everybody is answered by the champion.
"""

import json
import logging
import queue
import threading
import time
from contextlib import suppress
from copy import copy
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bike_assets.core.errors import BikeError
from bike_assets.core.experiment import arm_of
from bike_serving import loading
from bike_serving.champion import Champion, ChampionHolder, Compute, Registry, load_champion
from bike_serving.metrics import Metrics
from bike_serving.registry import NoChampionError
from bike_serving.settings import Settings

log = logging.getLogger("bike_serving")

PATHS: Final = frozenset({"/predict", "/v1/predict"})

_WAITING: Final = 256
"""Answers that wait to be compared; what comes while so many wait is not compared, and counted."""

_RETRY_SECONDS: Final = 60.0
"""Until a bundle that could not be loaded is tried again: it may have been arriving."""

_SHARES: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class ExperimentMetrics:
    """What an experiment counts. The labels are what can become of an answer and the two arms."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.answers = Counter(
            "bike_serving_experiment_answers",
            "Requests by who answers them: champion, challenger or mixed",
            ["arm"],
            registry=registry,
        )
        self.compared = Counter(
            "bike_serving_shadow_answers",
            "Answers by what became of their comparison: compared, absent, dropped or failed",
            ["result"],
            registry=registry,
        )
        self.difference = Histogram(
            "bike_serving_shadow_difference",
            "Challenger's forecast from the champion's, as a share of it (of one bicycle where it is less)",
            buckets=_SHARES,
            registry=registry,
        )


class _Mixed(NamedTuple):
    """What answers while these two share the counters."""

    champion: Champion
    challenger: Champion
    answers: Champion


class Experiment:
    """The challenger and its part. Only the following thread replaces `challenger` and `mixed`."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        holder: ChampionHolder,
        metrics: Metrics,
        compute: Compute = loading.compute,
    ) -> None:
        self.challenger: Champion | None = None
        self.metrics = ExperimentMetrics(metrics)
        self._settings, self._registry, self._holder = settings, registry, holder
        self._compute = compute
        self._mixed: _Mixed | None = None
        self._told = ""
        self._retry_at = 0.0
        self._answers: queue.Queue[bytes] = queue.Queue(_WAITING)
        self._stop = threading.Event()
        work = [self._follow, *([self._compare_all] if settings.experiment == "shadow" else [])]
        self._threads = [threading.Thread(target=run, name="experiment", daemon=True) for run in work]

    @property
    def is_shadow(self) -> bool:
        """Whether the challenger answers nobody."""
        return self._settings.experiment == "shadow"

    def start(self) -> None:
        """Follow the challenger from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; answers that still wait are not compared."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self._registry.close()

    def arm(self, caller: str) -> Champion | None:
        """Who answers a caller, None where it is the champion as always."""
        champion, challenger = self._holder.current, self.challenger
        if self.is_shadow or champion is None or challenger is None:
            return None
        if self._settings.experiment_by == "counter":
            mixed = self._mixed
            # After a swap, and until the next look, the mixture is of an earlier champion.
            return mixed.answers if mixed and mixed.champion is champion else None
        arm = arm_of(caller, challenger.ref.version, self._settings.experiment_share)
        return challenger if arm == "challenger" and not unfit(challenger, champion) else None

    def name(self, arm: Champion | None) -> str:
        """What metrics call an arm."""
        if arm is None:
            return "champion"
        return "mixed" if self._settings.experiment_by == "counter" else "challenger"

    def answered(self, arm: Champion | None, answer: bytes) -> None:
        """Take note of an answer that is sent: who gave it, or in shadow what it says."""
        if self.is_shadow:
            self.noted(answer)
        else:
            self.metrics.answers.labels(self.name(arm)).inc()

    def noted(self, answer: bytes) -> None:
        """Have an answer compared with what the challenger would have said, later and elsewhere."""
        if self.challenger is None:
            self.metrics.compared.labels("absent").inc()
            return
        try:
            self._answers.put_nowait(answer)
        except queue.Full:
            self.metrics.compared.labels("dropped").inc()

    def look(self) -> None:
        """Look for the challenger once. Never raises: without one the champion answers alone."""
        try:
            ref = self._registry.resolve()
            champion = self._holder.current
            if champion is not None and ref.version == champion.ref.version:
                self._take(None, "the challenger is the champion")
            elif (
                self.challenger is None or self.challenger.ref != ref
            ) and time.monotonic() > self._retry_at:
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                loaded = load_champion(self._settings, ref, self._compute)
                self._take(loaded, f"version {ref.version} takes part")
                self._retry_at = 0.0
            self._mix()
        except NoChampionError:
            self._take(None, "there is no challenger")
        except BikeError as error:
            self._tell(str(error))  # The challenger that is loaded stays.
        except Exception:
            log.exception("unexpected failure while looking for the challenger")

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._settings.poll_seconds)

    def _take(self, challenger: Champion | None, why: str) -> None:
        self.challenger = challenger
        if challenger is None:
            self._mixed = None
        self._tell(why)

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            log.info("experiment: %s", what)

    def _mix(self) -> None:
        champion, challenger = self._holder.current, self.challenger
        if self._settings.experiment_by != "counter" or champion is None or challenger is None:
            return
        if why := unfit(challenger, champion):
            self._mixed = None
            self._tell(why)
        elif (
            self._mixed is None
            or self._mixed.champion is not champion
            or self._mixed.challenger is not challenger
        ):
            answers = mixture(champion, challenger, self._settings.experiment_share)
            self._mixed = _Mixed(champion, challenger, answers)

    def _compare_all(self) -> None:
        while not self._stop.is_set():
            with suppress(queue.Empty):
                self.compare(self._answers.get(timeout=0.2))

    def compare(self, answer: bytes) -> None:
        """Compare an answer of the champion with what the challenger says of the same hours. Never raises."""
        challenger = self.challenger
        try:
            said = json.loads(answer)
            if challenger is None or said["issue_date"] != challenger.newest.issue_date_text:
                self.metrics.compared.labels("absent").inc()
                return
            for forecast in said["forecasts"]:
                hour = datetime.fromisoformat(forecast["target_ts"])
                theirs = challenger.newest.text(forecast["counter_id"], hour)
                if theirs is not None:
                    ours = float(forecast["forecast"])
                    difference = abs(float(json.loads(theirs)["forecast"]) - ours)
                    self.metrics.difference.observe(difference / max(ours, 1.0))
            self.metrics.compared.labels("compared").inc()
        except Exception:
            self.metrics.compared.labels("failed").inc()
            log.exception("an answer could not be compared with the challenger's")


def unfit(challenger: Champion, champion: Champion) -> str:
    """Why a challenger cannot stand in for the champion; empty where it can."""
    if challenger.newest.issue_date != champion.newest.issue_date:
        return (
            f"the challenger's forecast is of {challenger.newest.issue_date}, the champion's of "
            f"{champion.newest.issue_date}; materialise shadow_predictions"
        )
    if missing := len(champion.newest.counters - challenger.newest.counters):
        return f"the challenger knows {missing} counters less than the champion"
    return ""


def mixture(champion: Champion, challenger: Champion, share: float) -> Champion:
    """The champion with a share of its counters answered by the challenger; each forecast names its version."""
    rows = {}
    for counter in champion.newest.counters:
        arm = arm_of(counter, challenger.ref.version, share)
        source = challenger if arm == "challenger" else champion
        named = f',"model_version":{json.dumps(source.ref.version)}}}'.encode()
        rows[counter] = source.newest.rows[counter].ending(named)
    mixed = copy(champion)
    mixed.newest = replace(champion.newest, rows=rows)
    return mixed


class Experimenting:
    """ASGI middleware: chooses who answers a request for forecasts, or has the answer compared when it is sent.

    It stands inside what knows the caller and outside what answers.
    """

    def __init__(self, app: ASGIApp, experiment: Experiment) -> None:
        self._app, self._experiment = app, experiment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] not in PATHS or scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif self._experiment.is_shadow:
            await self._in_shadow(scope, receive, send)
        else:
            arm = scope["arm"] = self._experiment.arm(_caller(scope))
            self._experiment.metrics.answers.labels(self._experiment.name(arm)).inc()
            await self._app(scope, receive, send)

    async def _in_shadow(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = 0, bytearray()

        async def keeping(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if status == 200 and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        await self._app(scope, receive, keeping)
        if status == 200:
            self._experiment.noted(bytes(body))


def _caller(scope: Scope) -> str:
    """Who asks, as the guard knows it."""
    caller: Any = scope.get("caller")
    return str(getattr(caller, "id", ""))
