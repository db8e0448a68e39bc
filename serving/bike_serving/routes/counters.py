"""The counters the champion knows.

Belongs here: lists and descriptions of counters. Does not belong here: their forecasts.
"""

from fastapi import APIRouter, Response

from bike_serving.routes.common import NOT_LOADED, Current, json_response, problems
from bike_serving.schemas import CountersResponse

router = APIRouter()


@router.get("/counters", response_model=CountersResponse, responses=problems(**NOT_LOADED))
async def counters(champion: Current) -> Response:
    """The counters that can be asked for, with names and positions."""
    return json_response(champion.counters_json)
