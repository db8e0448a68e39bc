"""The counters the champion knows.

Belongs here: lists and descriptions of counters. Does not belong here: their forecasts.
"""

import polars as pl
from fastapi import APIRouter, Request, Response

from bike_serving.forecasts import dumps
from bike_serving.media import MEDIA_TYPES, Form, answer, asked_form, geojson, write_table
from bike_serving.problems import ProblemError
from bike_serving.routes.common import (
    NOT_LOADED,
    CounterPath,
    Current,
    FormParameter,
    json_response,
    problems,
)
from bike_serving.schemas import CounterResponse, CountersResponse

router = APIRouter()

_FORMS = (Form.JSON, Form.CSV, Form.GEOJSON)
_COLUMNS = ("counter_id", "counter_name", "site_name", "latitude", "longitude", "last_seen")


@router.get(
    "/counters",
    response_model=CountersResponse,
    responses={
        200: {"content": {MEDIA_TYPES[Form.CSV]: {}, MEDIA_TYPES[Form.GEOJSON]: {}}},
        **problems(s406="The form asked for is not given", s422="That is no form of an answer", **NOT_LOADED),
    },
)
async def counters(champion: Current, request: Request, format: FormParameter = None) -> Response:  # noqa: A002, ARG001
    """The counters that can be asked for, with names and positions; as points with GeoJSON."""
    form = asked_form(request, _FORMS)
    if form is Form.JSON:
        return json_response(champion.counters_json)
    known = champion.bundle.counters.select(
        *_COLUMNS, has_forecast=pl.col("counter_id").is_in(list(champion.newest.counters))
    )
    if form is Form.CSV:
        return answer(request, write_table(known, form), form)
    points = [
        (row["longitude"], row["latitude"], {**row, "last_seen": row["last_seen"].isoformat()})
        for row in known.iter_rows(named=True)
    ]
    return answer(request, geojson(points), form)


@router.get(
    "/counters/{counter_id}",
    response_model=CounterResponse,
    responses=problems(s404="The counter is unknown", s422="That is no counter's id", **NOT_LOADED),
)
async def counter(champion: Current, counter_id: CounterPath) -> Response:
    """One counter: where it stands, since when it counts, and how much."""
    rows = champion.bundle.counters.filter(pl.col("counter_id") == counter_id)
    if rows.is_empty():
        raise ProblemError(
            404,
            "unknown-counter",
            f"there is no counter {counter_id[:80]}; GET /v1/counters lists the counters",
        )
    row = rows.select(*_COLUMNS[:-1], "first_seen", "last_seen", "hours", "mean_hourly_count", "status").row(
        0, named=True
    )
    described = {
        **row,
        "first_seen": row["first_seen"].isoformat(),
        "last_seen": row["last_seen"].isoformat(),
        "has_forecast": counter_id in champion.newest.counters,
    }
    return json_response(f'{{"model":{champion.ref_json},"counter":{dumps(described)}}}')
