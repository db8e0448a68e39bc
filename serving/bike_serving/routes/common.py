"""What routes share: the champion of a request, and how an endpoint states the errors it answers with.

Belongs here: dependencies and documentation used by more than one module of routes. Does not belong here: endpoints.
"""

import asyncio
from codecs import BOM_UTF8
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ValidationError

from bike_serving.champion import Champion, ChampionHolder
from bike_serving.media import MEDIA_TYPES, Form
from bike_serving.metrics import Metrics
from bike_serving.problems import MEDIA_TYPE, ProblemError
from bike_serving.schemas import MAX_COUNTER_ID, date_text
from bike_serving.settings import Settings

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

DateParameter = Annotated[
    date | None, BeforeValidator(date_text), Query(description="Local day of issue; the newest by default")
]

FormParameter = Annotated[
    Literal["json", "csv", "parquet", "arrow", "geojson"] | None,
    Query(description="Form of the answer; goes before Accept"),
]
CounterPath = Annotated[
    str, Path(min_length=1, max_length=MAX_COUNTER_ID, description="As GET /v1/counters lists it")
]

NOT_LOADED = {"s503": "No model is loaded yet"}


def problems(**statuses: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: status (as `s404`) → when it is answered."""
    return {
        int(status.removeprefix("s")): {
            "description": description,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, description in statuses.items()
    }


def holder_of(request: Request) -> ChampionHolder:
    """What holds the champion that serves."""
    holder: ChampionHolder = request.app.state.holder
    return holder


def metrics_of(request: Request) -> Metrics:
    """The application's metrics."""
    metrics: Metrics = request.app.state.metrics
    return metrics


async def champion_of(request: Request) -> Champion:
    """The champion for the whole of this request: taken once, so that an answer is of one version."""
    holder = holder_of(request)
    champion: Champion | None = request.scope.get("arm") or holder.current
    if champion is None:
        raise ProblemError(
            503,
            "no-model",
            f"no model is loaded: {holder.status.error or 'the service is starting'}",
            {"Retry-After": "5"},
        )
    request.scope["champion"] = champion  # whoever watches the request learns which version answered it
    return champion


def settings_of(request: Request) -> Settings:
    """The application's settings."""
    settings: Settings = request.app.state.settings
    return settings


async def compute(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """Do work of tenths of a second beside the event loop: two pieces at a time in a process, others wait.

    Raises:
        ProblemError: 503, it was not done in time.
    """
    request.scope["computed"] = True  # its seconds say nothing of how fast the champion looks up
    try:
        async with asyncio.timeout(settings_of(request).request_timeout_seconds):
            return await to_thread.run_sync(
                partial(work, *arguments), abandon_on_cancel=True, limiter=_two_at_a_time()
            )
    except TimeoutError as error:
        raise ProblemError(
            503, "busy", "there is too much to compute now; ask again, or for less", {"Retry-After": "10"}
        ) from error


@cache
def _two_at_a_time() -> CapacityLimiter:
    return CapacityLimiter(2)


def parse(model: type[M], body: bytes) -> M:
    """A body as a model.

    Raises:
        RequestValidationError: it is no JSON, or not of the model.
    """
    try:
        return model.model_validate_json(body.removeprefix(BOM_UTF8))
    except ValidationError as error:
        raise RequestValidationError(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        ) from error


def json_body(*models: type[BaseModel], bulk: str | None = None) -> dict[str, Any]:
    """The description of a body that a route reads itself: any of some models or, with `bulk`, a table.

    The models themselves are in `bike_serving.routes.documentation`.
    """
    schemas: list[dict[str, Any]] = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    content: dict[str, Any] = {"application/json": {"schema": {"anyOf": schemas}}}
    if bulk is not None:
        for form in (Form.CSV, Form.PARQUET, Form.ARROW):
            content[MEDIA_TYPES[form]] = {
                "schema": {"type": "string", "format": "binary", "description": bulk}
            }
    return {"requestBody": {"required": True, "content": content}}


Current = Annotated[Champion, Depends(champion_of)]


def json_response(content: bytes | str) -> Response:
    """An answer whose JSON is made already."""
    return Response(content, media_type="application/json")
