"""Whole vintages: what is, or was, forecast for one counter or the city.

Belongs here: `GET` of forecasts, which clients may keep and ask about again. Does not belong here: forecasts of hours
that the caller names (`bike_serving.routes.predict`).
"""

import hashlib
from datetime import date, datetime
from typing import Annotated

import polars as pl
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator

from bike_serving.champion import Champion
from bike_serving.media import MEDIA_TYPES, TABLES, Form, answer, asked_form, geojson, write_table
from bike_serving.problems import ProblemError
from bike_serving.routes.common import (
    NOT_LOADED,
    CounterPath,
    Current,
    DateParameter,
    FormParameter,
    compute,
    metrics_of,
    problems,
)
from bike_serving.schemas import CounterId, ForecastCollection, PredictResponse, moment_text
from bike_serving.vintages import identity_headers, issue_date_of, known_at, of_counters

router = APIRouter()

_MAPPED = (*TABLES, Form.GEOJSON)

AsOf = Annotated[
    AwareDatetime | date | None,
    BeforeValidator(moment_text),
    Query(description="A moment with time zone, or a local day; the newest forecast that there was then"),
]


@router.get(
    "/counters/{counter_id}/forecast",
    response_model=PredictResponse,
    responses={
        200: {
            "description": "Every hour of the seven days from the issue date",
            "content": {
                MEDIA_TYPES[Form.GEOJSON]: {"schema": ForecastCollection.model_json_schema()},
                **{MEDIA_TYPES[form]: {} for form in TABLES[1:]},
            },
        },
        304: {"description": "It is still what If-None-Match names"},
        **problems(
            s404="The counter is unknown",
            s406="The form asked for is not given",
            s422="The issue date cannot be answered, or that is no counter's id",
            **NOT_LOADED,
        ),
    },
)
async def of_counter(
    champion: Current,
    request: Request,
    counter_id: CounterPath,
    issue_date: DateParameter = None,
    format: FormParameter = None,  # noqa: A002, ARG001
) -> Response:
    """The forecast of one counter. Has an ETag; GeoJSON has the counter's position."""
    form = asked_form(request, _MAPPED)
    day = issue_date_of(champion, issue_date)
    frame = await compute(request, of_counters, champion, [counter_id], day)
    return _answer(request, champion, frame, form, day)


@router.get(
    "/forecast",
    response_model=PredictResponse,
    responses={
        200: {
            "description": "Every counter, every hour of the seven days from the issue date",
            "content": {MEDIA_TYPES[form]: {} for form in TABLES[1:]},
        },
        304: {"description": "It is still what If-None-Match names"},
        **problems(
            s404="A counter is unknown",
            s406="The form asked for is not given",
            s422="The moment cannot be answered",
            **NOT_LOADED,
        ),
    },
)
async def vintage(
    champion: Current,
    request: Request,
    as_of: AsOf = None,
    counter_id: Annotated[
        list[CounterId] | None, Query(description="Only these counters", max_length=200)
    ] = None,
    horizon: Annotated[int | None, Query(ge=1, le=7, description="Only this day ahead")] = None,
    format: FormParameter = None,  # noqa: A002, ARG001
) -> Response:
    """What was forecast then: the vintage that was the newest at `as_of`, by the model that serves now."""
    form = asked_form(request, TABLES)
    day = known_at(champion, as_of) if isinstance(as_of, datetime) else issue_date_of(champion, as_of)
    frame = await compute(request, of_counters, champion, counter_id, day)
    if horizon is not None:
        frame = frame.filter(pl.col("horizon") == horizon)
    if frame.is_empty():
        raise ProblemError(404, "no-forecast", f"the forecast of {day} has no day {horizon}")
    return _answer(request, champion, frame, form, day)


def _answer(request: Request, champion: Champion, frame: pl.DataFrame, form: Form, day: date) -> Response:
    """A vintage never changes for one bundle, so the bundle and the question make its tag."""
    asked = f"{champion.ref.bundle_id} {day} {form} {request.url.path} {request.url.query}"
    tag = hashlib.sha256(asked.encode()).hexdigest()[:32]
    metrics_of(request).count_forecasts(champion.model_type, champion.ref.version, frame.height)
    if form is Form.GEOJSON:
        body = _map(champion, frame, day)
    else:
        body = write_table(frame, form)
        if form is Form.JSON:
            head = f'{{"model":{champion.ref_json},"issue_date":"{day}","forecasts":'
            body = head.encode() + body + b"}"
    return answer(request, body, form, tag, **identity_headers(champion, day))


def _map(champion: Champion, frame: pl.DataFrame, day: date) -> bytes:
    places = {
        counter_id: (longitude, latitude)
        for counter_id, longitude, latitude in champion.bundle.counters.select(
            "counter_id", "longitude", "latitude"
        ).iter_rows()
    }
    rows = frame.with_columns(pl.col("target_ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    features = [(*places.get(row["counter_id"], (None, None)), row) for row in rows.iter_rows(named=True)]
    return geojson(features, issue_date=day.isoformat(), model_version=champion.ref.version)
