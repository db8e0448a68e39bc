"""What operators and their machines ask: health, metrics, documentation. These routes have no version.

Belongs here: the state of the service. Does not belong here: forecasts, models.
"""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST

from bike_serving.routes.common import NOT_LOADED, Current, holder_of, metrics_of, problems
from bike_serving.schemas import Alive, Ready

router = APIRouter()


@router.get("/health", response_model=Alive)
async def health() -> dict[str, str]:
    """Whether the process lives. Says nothing about models: see `/ready`."""
    return {"status": "alive"}


@router.get("/ready", response_model=Ready, responses=problems(**NOT_LOADED))
async def ready(champion: Current, request: Request) -> dict[str, Any]:
    """Whether the service can answer. 503 until a model is loaded; `degraded` while MLflow is away."""
    status = holder_of(request).status
    return {
        "status": "degraded" if status.error else "ok",
        "reason": status.error,
        "model": vars(champion.ref),
        "issue_date": champion.bundle.issue_date,
        "bundle_age_seconds": (datetime.now(UTC) - champion.bundle.info.created_at).total_seconds(),
        "loaded_at": champion.loaded_at,
        "last_poll": {"at": status.at, "error": status.error},
    }


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=problems(s401="No key or token, or one that is worth nothing here"),
)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(metrics_of(request).text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def index() -> RedirectResponse:
    """People are shown the documentation."""
    return RedirectResponse("/docs")
