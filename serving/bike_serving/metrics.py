"""Prometheus metrics of the service.

Belongs here: every metric and what counts into it. Labels are bounded: routes are templates, never paths that
a client made up. Does not belong here: alert rules and dashboards.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class ModelLabels:
    """What the model metrics tell about the champion that serves."""

    labels: dict[str, str]
    created_at: datetime
    issue_date: datetime


class _ModelCollector(Collector):
    """Reads the champion when scraped, so that a scrape never sees two models or a stale one."""

    def __init__(self, current: Callable[[], ModelLabels | None]) -> None:
        self._current = current

    def collect(self) -> Iterable[GaugeMetricFamily]:
        model = self._current()
        yield GaugeMetricFamily("bike_serving_model_loaded", "1 when a champion serves, else 0", bool(model))
        if model is None:
            return
        info = GaugeMetricFamily(
            "bike_serving_model_info", "The champion that serves", labels=list(model.labels)
        )
        info.add_metric(list(model.labels.values()), 1)
        yield info
        yield GaugeMetricFamily(
            "bike_serving_bundle_created_timestamp_seconds",
            "When the bundle that serves was written",
            model.created_at.timestamp(),
        )
        yield GaugeMetricFamily(
            "bike_serving_issue_date_timestamp_seconds",
            "Newest issue date that is served, at midnight UTC",
            model.issue_date.timestamp(),
        )


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bike_serving_requests",
            "Requests answered",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "bike_serving_request_seconds",
            "Time from request to the end of its answer",
            ["route", "method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.predictions = Counter(
            "bike_serving_predictions",
            "Forecasts sent",
            ["model_version"],
            registry=self.registry,
        )
        self.swaps = Counter(
            "bike_serving_swaps", "Champions that replaced another without a restart", registry=self.registry
        )
        self.rejected_bundles = Counter(
            "bike_serving_rejected_bundles", "Bundles refused while another served on", registry=self.registry
        )
        self.poll_failures = Counter(
            "bike_serving_poll_failures", "Looks at the registry that failed", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def watch_model(self, current: Callable[[], ModelLabels | None]) -> None:
        """Tell about the champion that `current` gives at each scrape."""
        self.registry.register(_ModelCollector(current))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestMetrics:
    """ASGI middleware that counts and times every request under its route's template."""

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

        try:
            await self._app(scope, receive, noting_status)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched").removeprefix("/v1")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.latency.labels(route, method).observe(time.perf_counter() - began)
