"""Prometheus metrics of the service.

Belongs here: every metric and what counts into it, in one process or several. Labels are bounded: routes are
templates, never paths that a client made up. Does not belong here: alert rules and dashboards.

Several workers count into files of one folder (prometheus_client's multiprocess mode, chosen by its environment
variable before anything is imported; see `__main__`), and each writes beside them which model it serves. Whichever
worker is scraped adds up the files, so that a scrape tells of the service and not of a worker.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bike_serving.settings import WORKERS_VARIABLE

log = logging.getLogger("bike_serving")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class ServedModel:
    """What metrics tell of the champion that a worker serves; moments in seconds since 1970."""

    name: str
    version: str
    run_id: str
    bundle_id: str
    created_at: float
    issue_date: float


class _Workers(Collector):
    """The models that live workers serve and what their processes use, read when scraped."""

    def __init__(self, metrics: "Metrics", folder: Path | None) -> None:
        self._metrics, self._folder = metrics, folder

    def collect(self) -> Iterable[Metric]:
        models = self._models()
        yield GaugeMetricFamily("bike_serving_workers", "Processes that answer", len(models))
        yield GaugeMetricFamily(
            "bike_serving_model_loaded",
            "1 when every worker serves a champion, else 0",
            bool(models) and None not in models.values(),
        )
        yield from self._served({model for model in models.values() if model is not None})
        yield from _processes(list(models))

    def _models(self) -> dict[int, ServedModel | None]:
        """The live workers by process id, and what each serves."""
        if self._folder is None:
            return {os.getpid(): self._metrics.served}
        found: dict[int, ServedModel | None] = {}
        for file in self._folder.glob("worker_*.json"):
            pid = int(file.stem.removeprefix("worker_"))
            if not Path(f"/proc/{pid}").exists():
                multiprocess.mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
                file.unlink(missing_ok=True)
                continue
            with suppress(OSError, ValueError):
                content = json.loads(file.read_bytes())
                found[pid] = None if content is None else ServedModel(**content)
        return found

    def _served(self, models: set[ServedModel]) -> Iterable[Metric]:
        if not models:
            return
        info = GaugeMetricFamily(
            "bike_serving_model_info",
            "The champion that serves; two while workers change over",
            labels=["name", "version", "run_id", "bundle_id"],
        )
        for model in models:
            info.add_metric([model.name, model.version, model.run_id, model.bundle_id], 1)
        yield info
        yield GaugeMetricFamily(
            "bike_serving_bundle_created_timestamp_seconds",
            "When the bundle that serves was written",
            min(model.created_at for model in models),
        )
        yield GaugeMetricFamily(
            "bike_serving_issue_date_timestamp_seconds",
            "Newest issue date that is served, at midnight UTC",
            min(model.issue_date for model in models),
        )


def _processes(pids: list[int]) -> Iterable[Metric]:
    """prometheus_client's process metrics (CPU, memory, file descriptors), added up over processes."""
    total: dict[str, Metric] = {}
    for pid in pids:
        for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            known = total.setdefault(metric.name, metric)
            if known is metric:
                continue
            known.samples = [
                ours._replace(
                    value=min(ours.value, theirs.value)
                    if ours.name == "process_start_time_seconds"
                    else ours.value + theirs.value
                )
                for ours, theirs in zip(known.samples, metric.samples, strict=True)
            ]
    return total.values()


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        folder = os.environ.get(WORKERS_VARIABLE)
        self._folder = Path(folder) if folder else None
        self.served: ServedModel | None = None
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "route", "method", "status")
        self.latency = Histogram(
            "bike_serving_request_seconds",
            "Time from request to the end of its answer",
            ["route", "method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_progress = self._gauge(
            "requests_in_progress", "Requests that are being answered or wait for it", "livesum"
        )
        self.predictions = self._counter("predictions", "Forecasts sent", "model_type", "model_version")
        self.lookups = self._counter(
            "vintage_lookups", "Answers by whether the vintage was at hand (hit) or computed (miss)", "result"
        )
        self.swaps = self._counter("swaps", "Champions that replaced another without a restart")
        self.rollbacks = self._counter("rollbacks", "New champions taken back because they answered worse")
        self.rejected_bundles = self._counter("rejected_bundles", "Bundles refused while another served on")
        self.poll_failures = self._counter("poll_failures", "Looks at the registry that failed")
        self.webhooks = self._counter("webhooks", "Webhooks of the registry by what became of them", "result")
        self.degraded = self._gauge(
            "degraded", "1 when what serves is not what the registry names, or it cannot be asked", "livemax"
        )
        self._hot: dict[tuple[str, str, int], Callable[[float], None]] = {}
        self._children: dict[tuple[Counter, *tuple[str, ...]], Counter] = {}
        self.serves(None)
        self.registry.register(_Workers(self, self._folder))

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"bike_serving_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, mode: Any) -> Gauge:
        return Gauge(f"bike_serving_{name}", description, registry=self.registry, multiprocess_mode=mode)

    def serves(self, model: ServedModel | None) -> None:
        """Tell which model this worker serves from now on."""
        self.served = model
        if self._folder is None:
            return
        file = self._folder / f"worker_{os.getpid()}.json"
        try:
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(asdict(model) if model else None))
            temporary.replace(file)
        except OSError as error:
            log.warning("%s cannot be written (%s): metrics will not tell of this worker", file, error)

    def count_forecasts(self, model_type: str, version: str, number: int, *, computed: bool = False) -> None:
        """Count forecasts that were sent, and whether their vintage had to be computed first."""
        self._child(self.predictions, model_type, version).inc(number)
        self._child(self.lookups, "miss" if computed else "hit").inc()

    def _child(self, counter: Counter, *labels: str) -> Counter:
        """The counter of some labels, which finding anew costs more than counting. Labels have few values."""
        child = self._children.get((counter, *labels))
        if child is None:
            child = self._children[counter, *labels] = counter.labels(*labels)
        return child

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count and time an answered request."""
        count = self._hot.get((route, method, status))
        if count is None:
            requests = self.requests.labels(route, method, str(status))
            latency = self.latency.labels(route, method)

            def count(seconds: float) -> None:
                requests.inc()
                latency.observe(seconds)

            self._hot[route, method, status] = count  # routes, methods and statuses are few
        count(seconds)

    def text(self) -> bytes:
        """The metrics of all workers in Prometheus' text format."""
        if self._folder is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        registry.register(_Workers(self, self._folder))  # first: it forgets the gauges of dead workers
        own = generate_latest(registry)
        counted = CollectorRegistry()
        multiprocess.MultiProcessCollector(counted, path=str(self._folder))  # type: ignore[no-untyped-call]
        return own + generate_latest(counted)


class RequestMetrics:
    """ASGI middleware that counts and times every request under its route's template.

    A request that a champion answered is noted in its record, too.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, noting_status)
        finally:
            self._metrics.in_progress.dec()
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.count_request(route, method, status, seconds)
            if champion := scope.get("champion"):
                champion.record.add(status >= 500, None if scope.get("computed") else seconds)
