"""What routes share: the champion of a request, and how an endpoint states the errors it answers with.

Belongs here: dependencies and documentation used by more than one module of routes. Does not belong here: endpoints.
"""

from typing import Annotated, Any

from fastapi import Depends, Request, Response

from bike_serving.champion import Champion, ChampionHolder
from bike_serving.metrics import Metrics
from bike_serving.problems import MEDIA_TYPE, ProblemError
from bike_serving.schemas import Problem

NOT_LOADED = {"s503": "No model is loaded yet"}


def problems(**statuses: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: status (as `s404`) → when it is answered."""
    return {
        int(status.removeprefix("s")): {
            "description": description,
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
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
    champion = holder.current
    if champion is None:
        raise ProblemError(
            503,
            "no-model",
            f"no model is loaded: {holder.status.error or 'the service is starting'}",
            {"Retry-After": "5"},
        )
    request.scope["champion"] = champion  # whoever watches the request learns which version answered it
    return champion


Current = Annotated[Champion, Depends(champion_of)]


def json_response(content: bytes | str) -> Response:
    """An answer whose JSON is made already."""
    return Response(content, media_type="application/json")
