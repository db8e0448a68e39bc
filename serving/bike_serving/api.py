"""The routes.

Belongs here: from a request to a look-up and back. A request takes the champion's reference once and uses it
to the end, so that an answer is of one version whatever is promoted meanwhile. Does not belong here: loading
models.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST

from bike_assets.core.bundle import IssueDateError
from bike_serving.champion import Champion, ChampionHolder, describe
from bike_serving.forecasts import ForecastTable, OutsideWindowError, UnknownCountersError, iso
from bike_serving.metrics import Metrics
from bike_serving.problems import MEDIA_TYPE, ProblemError, some
from bike_serving.schemas import (
    CountersResponse,
    Health,
    ModelDescription,
    PredictRequest,
    PredictResponse,
    Problem,
)

router = APIRouter()


def _problems(**statuses: str) -> dict[int | str, dict[str, Any]]:
    return {
        int(status.removeprefix("s")): {
            "description": description,
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
        }
        for status, description in statuses.items()
    }


_NOT_LOADED = {"s503": "No model is loaded yet"}


def _holder(request: Request) -> ChampionHolder:
    holder: ChampionHolder = request.app.state.holder
    return holder


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def _champion(request: Request) -> Champion:
    """The champion for the whole of this request."""
    holder = _holder(request)
    champion = holder.current
    if champion is None:
        raise ProblemError(
            503,
            "no-model",
            f"no model is loaded: {holder.status.error or 'the service is starting'}",
            {"Retry-After": "5"},
        )
    return champion


Current = Annotated[Champion, Depends(_champion)]


@router.post(
    "/predict",
    response_model=PredictResponse,
    responses=_problems(
        s400="The body is not JSON",
        s404="A counter is unknown",
        s413="The body is too large",
        s422="A field is wrong, or an hour or issue date cannot be forecast",
        **_NOT_LOADED,
    ),
)
async def predict(wanted: PredictRequest, champion: Current, request: Request) -> Response:
    """Forecasts with intervals for each counter at each hour."""
    table = champion.ready_table(wanted.issue_date)
    if table is None:
        table = await run_in_threadpool(_older_table, champion, wanted)
    try:
        found = table.look_up(
            list(dict.fromkeys(wanted.counter_ids)), list(dict.fromkeys(wanted.target_hours))
        )
    except UnknownCountersError as error:
        raise ProblemError(
            404,
            "unknown-counter",
            f"no forecast for counter {some(error.counter_ids)}; GET /counters lists the counters",
            counter_ids=error.counter_ids,
        ) from error
    except OutsideWindowError as error:
        first, last = map(iso, error.window)
        raise ProblemError(
            422,
            "outside-window",
            f"target_hours: {some([iso(hour) for hour in error.hours])} is outside the forecast issued on "
            f"{table.issue_date}, whose hours are {first} to {last}",
            window={"first": first, "last": last},
        ) from error
    _metrics(request).predictions.labels(champion.ref.version).inc(len(found))
    return _json(
        f'{{"model":{champion.ref_json},"issue_date":"{table.issue_date}","forecasts":[{",".join(found)}]}}'
    )


@router.get("/counters", response_model=CountersResponse, responses=_problems(**_NOT_LOADED))
async def counters(champion: Current) -> Response:
    """The counters that can be asked for, with names and positions."""
    return _json(champion.counters_json)


@router.get("/health", response_model=Health, responses=_problems(**_NOT_LOADED))
async def health(champion: Current, request: Request) -> dict[str, Any]:
    """Whether the service can answer. 503 until a model is loaded."""
    status = _holder(request).status
    return {
        "status": "degraded" if status.error else "ok",
        "reason": status.error,
        "model": vars(champion.ref),
        "issue_date": champion.bundle.issue_date,
        "bundle_age_seconds": (datetime.now(UTC) - champion.bundle.info.created_at).total_seconds(),
        "loaded_at": champion.loaded_at,
        "last_poll": {"at": status.at, "error": status.error},
    }


@router.get("/model", response_model=ModelDescription, responses=_problems(**_NOT_LOADED))
async def model(champion: Current) -> dict[str, Any]:
    """What is loaded: where it comes from, what it can answer, how good it was when it was promoted."""
    return describe(champion)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(_metrics(request).text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def index() -> RedirectResponse:
    """People are shown the documentation."""
    return RedirectResponse("/docs")


def _older_table(champion: Champion, wanted: PredictRequest) -> ForecastTable:
    try:
        return champion.table(wanted.issue_date or champion.bundle.issue_date)
    except IssueDateError as error:
        first, last = champion.bundle.first_issue_date, champion.bundle.issue_date
        raise ProblemError(
            422,
            "issue-date-out-of-range",
            f"issue_date: {wanted.issue_date} cannot be answered; issue dates are {first} to {last}",
            issue_dates={"first": str(first), "last": str(last)},
        ) from error


def _json(text: str) -> Response:
    return Response(text.encode(), media_type="application/json")
