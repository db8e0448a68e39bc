"""`POST /predict`: from a request to a look-up and back.

Belongs here: forecasts for counters and hours that the caller names. Does not belong here: loading models, and whole
vintages (`bike_serving.routes.forecasts`).
"""

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from bike_assets.core.bundle import IssueDateError
from bike_serving.champion import Champion
from bike_serving.forecasts import ForecastTable, OutsideWindowError, UnknownCountersError, iso
from bike_serving.problems import ProblemError, some
from bike_serving.routes.common import NOT_LOADED, Current, json_response, metrics_of, problems
from bike_serving.schemas import PredictRequest, PredictResponse

router = APIRouter()


@router.post(
    "/predict",
    response_model=PredictResponse,
    responses=problems(
        s400="The body is not JSON",
        s404="A counter is unknown",
        s413="The body is too large",
        s422="A field is wrong, or an hour or issue date cannot be forecast",
        **NOT_LOADED,
    ),
)
async def predict(wanted: PredictRequest, champion: Current, request: Request) -> Response:
    """Forecasts with intervals for each counter at each hour."""
    table = champion.ready_table(wanted.issue_date)
    computed = table is None
    if table is None:
        request.scope["computed"] = True  # its seconds say nothing of how fast the champion looks up
        table = await run_in_threadpool(_older_table, champion, wanted)
    try:
        answer = champion.answer(table, wanted.counter_ids, wanted.target_hours)
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
    metrics_of(request).count_forecasts(
        champion.model_type, champion.ref.version, answer.forecasts, computed=computed
    )
    return json_response(answer.body)


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
