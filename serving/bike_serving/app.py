"""Puts the service together. Nothing here is decided twice: settings in, application out."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from bike_serving import logs, problems, routes
from bike_serving.champion import ChampionHolder
from bike_serving.experiment import Experiment, Experimenting
from bike_serving.fast_path import FastPredict
from bike_serving.metrics import Metrics, RequestMetrics
from bike_serving.orchestrator import Orchestrator
from bike_serving.registry import MlflowRegistry
from bike_serving.schemas import body_limit
from bike_serving.security.body import BodyLimit
from bike_serving.security.guard import Access, Guard
from bike_serving.settings import Settings
from bike_serving.tracing import telemetry
from bike_serving.webhooks import Webhooks

_FIRST_LOOK_SECONDS = 20.0

_SWITCH_SECONDS = 0.0005
"""How long a champion being loaded may keep the interpreter while a request waits: a tenth of Python's default."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application; by default with the settings of the environment."""
    settings = settings or Settings()
    access = Access(settings)
    metrics = Metrics()
    registry = MlflowRegistry(
        settings.mlflow_url, settings.model_name, settings.alias, settings.registry_timeout_seconds
    )
    orchestrator = (
        Orchestrator(settings.dagster_url, settings.dagster_location) if settings.dagster_url else None
    )
    holder = ChampionHolder(settings, registry, metrics)
    experiment = _experiment(settings, holder, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(_SWITCH_SECONDS)
        holder.start()
        # A worker that takes the place of a dead one takes no requests before it can answer them.
        await run_in_threadpool(holder.looked.wait, _FIRST_LOOK_SECONDS)
        if experiment:
            experiment.start()
        yield
        if experiment:
            experiment.stop()
        holder.stop()
        access.close()
        if orchestrator is not None:
            await orchestrator.close()

    app = FastAPI(
        title="Bicycle traffic forecasts",
        summary="Hourly forecasts of the champion model for every counter, seven days ahead, with intervals.",
        version=version("bike-serving"),
        lifespan=lifespan,
        telemetry=telemetry(settings.tracing),
    )
    app.state.holder, app.state.metrics, app.state.settings = holder, metrics, settings
    app.state.registry, app.state.orchestrator = registry, orchestrator
    app.state.experiment = experiment
    secret = settings.webhook_secret
    app.state.webhooks = Webhooks(secret.get_secret_value()) if secret else None
    routes.install(app)
    problems.install(app)
    # Each stands around those before it.
    app.add_middleware(FastPredict, holder=holder, metrics=metrics)
    if experiment:
        app.add_middleware(Experimenting, experiment=experiment)
    app.add_middleware(BodyLimit, limit_of=body_limit, seconds=settings.body_timeout_seconds)
    app.add_middleware(logs.RequestContext)
    app.add_middleware(Guard, access=access)
    if origins := [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]:
        # Outside the guard: a browser asks for leave without credentials.
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(RequestMetrics, metrics=metrics)
    return app


def _experiment(settings: Settings, holder: ChampionHolder, metrics: Metrics) -> Experiment | None:
    if settings.experiment == "off":
        return None
    registry = MlflowRegistry(
        settings.mlflow_url, settings.model_name, settings.experiment_alias, settings.registry_timeout_seconds
    )
    return Experiment(settings, registry, holder, metrics)
