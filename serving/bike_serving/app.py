"""Puts the service together. Nothing here is decided twice: settings in, application out."""

import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from bike_serving import problems, routes
from bike_serving.champion import ChampionHolder
from bike_serving.experiment import Experiment, Experimenting
from bike_serving.fast_path import ShortWay
from bike_serving.loading import Loader
from bike_serving.metrics import Metrics, RequestMetrics
from bike_serving.orchestrator import Orchestrator
from bike_serving.registry import MlflowRegistry
from bike_serving.schemas import body_limit
from bike_serving.security.body import BodyLimit
from bike_serving.security.guard import Access, Guard
from bike_serving.server import SHORT_WAY
from bike_serving.settings import Settings
from bike_serving.tracing import telemetry
from bike_serving.webhooks import Webhooks

_FIRST_LOOK_SECONDS = 20.0

_SWITCH_SECONDS = 0.0005
"""How long a champion being loaded may keep the interpreter while a request waits: a tenth of Python's default."""


def create_app(settings: Settings | None = None, loader: Loader | None = None) -> FastAPI:
    """The service as an ASGI application; by default with the settings of the environment and a loader of its own."""
    settings = settings or Settings()
    access = Access(settings)
    metrics = Metrics()
    registry = _registry(settings, settings.alias)
    orchestrator = (
        Orchestrator(settings.dagster_url, settings.dagster_location) if settings.dagster_url else None
    )
    loader = loader or Loader()
    holder = ChampionHolder(settings, registry, metrics, loader.compute)
    experiment = _experiment(settings, holder, metrics, loader)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        sys.setswitchinterval(_SWITCH_SECONDS)
        loader.start()
        holder.start()
        # A worker that takes the place of a dead one takes no requests before it can answer them.
        await run_in_threadpool(holder.looked.wait, _FIRST_LOOK_SECONDS)
        # What is there now stays: looking through it for garbage again and again would hold up requests.
        gc.collect()
        gc.freeze()
        if experiment:
            experiment.start()
        yield {SHORT_WAY: app.state.short_way}
        if experiment:
            experiment.stop()
        holder.stop()
        loader.close()
        access.close()
        if orchestrator is not None:
            await orchestrator.close()

    app = Service(
        title="Bicycle traffic forecasts",
        summary="Hourly forecasts of the champion model for every counter, seven days ahead, with intervals.",
        version=version("bike-serving"),
        docs_url=None,  # made of files of our own, see routes.operations
        redoc_url=None,
        lifespan=lifespan,
        telemetry=telemetry(settings.tracing),
    )
    app.state.holder, app.state.metrics, app.state.settings = holder, metrics, settings
    app.state.registry, app.state.orchestrator = registry, orchestrator
    app.state.experiment = experiment
    # Spans are made on the route's way.
    app.state.short_way = None if settings.tracing else ShortWay(access, holder, metrics, experiment)
    secret = settings.webhook_secret
    app.state.webhooks = Webhooks(secret.get_secret_value()) if secret else None
    routes.install(app)
    problems.install(app)
    # Each stands around those before it.
    if experiment:
        app.surround(Experimenting, experiment=experiment)
    app.surround(BodyLimit, limit_of=body_limit, seconds=settings.body_timeout_seconds)
    app.surround(Guard, access=access)
    if origins := [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]:
        # Outside the guard: a browser asks for leave without credentials.
        app.surround(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.surround(RequestMetrics, metrics=metrics)
    return app


class Service(FastAPI):
    """FastAPI with middleware around all of it: what is refused or answered there never enters the framework."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._outermost: ASGIApp = super().__call__

    def surround(self, middleware: Callable[..., ASGIApp], **options: Any) -> None:
        """Put a middleware around what there is."""
        self._outermost = middleware(self._outermost, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._outermost(scope, receive, send)


def _registry(settings: Settings, alias: str) -> MlflowRegistry:
    return MlflowRegistry(
        settings.mlflow_url,
        settings.model_name,
        alias,
        settings.registry_timeout_seconds,
        settings.mlflow_credentials,
    )


def _experiment(
    settings: Settings, holder: ChampionHolder, metrics: Metrics, loader: Loader
) -> Experiment | None:
    if settings.experiment == "off":
        return None
    registry = _registry(settings, settings.experiment_alias)
    return Experiment(settings, registry, holder, metrics, loader.compute)
