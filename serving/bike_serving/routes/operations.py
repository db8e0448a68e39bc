"""What operators and their machines ask: health, metrics, documentation. These routes have no version.

Belongs here: the state of the service. Does not belong here: forecasts, models.
"""

from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST

from bike_serving.routes.common import NOT_LOADED, Current, holder_of, metrics_of, problems
from bike_serving.schemas import Alive, Ready

router = APIRouter()

_SWAGGER = files("fastapi_offline") / "static"


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


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Swagger UI. Its addresses are relative, so that it may stand behind a prefix."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title=request.app.title,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )


@router.get("/docs/{file}", include_in_schema=False)
async def docs_file(file: Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"]) -> FileResponse:
    """What the page is made of."""
    return FileResponse(str(_SWAGGER / file))
