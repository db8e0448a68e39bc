"""`POST /evaluate` and `POST /drift`: counts that the caller sends, held against forecasts and against recent weeks.

Belongs here: questions with the truth in them. The counts are in the body; no path, URL or expression of a request is
ever opened. Does not belong here: what measures mean (`bike_assets.core.metrics`, `bike_assets.core.drift`), and the
platform's own monitoring, which knows a year of counts and every feature where this service knows some weeks.
"""

from datetime import date
from typing import Any

import polars as pl
from fastapi import APIRouter, Request, Response

from bike_assets.core.calendar import local_columns
from bike_assets.core.drift import per_counter_drift, reference_days
from bike_assets.core.metrics import accuracy_table
from bike_serving.champion import Champion
from bike_serving.forecasts import dumps
from bike_serving.media import Form, body_of, read_table, sent_form
from bike_serving.problems import ProblemError
from bike_serving.routes.common import NOT_LOADED, Current, compute, json_body, json_response, parse, problems
from bike_serving.schemas import (
    MAX_COUNT,
    DriftRequest,
    DriftResponse,
    EvaluateRequest,
    EvaluateResponse,
    HorizonParameter,
)
from bike_serving.vintages import HOUR, KEYS, near, require_columns, utc_hours, vintages_of_days

router = APIRouter()

_COUNTS = (*KEYS, "hourly_count")
_ERRORS = problems(
    s400="The body is not JSON",
    s408="The body did not arrive in time",
    s413="The body is too large",
    s415="The body's form is not read",
    s422="A field is wrong, or nothing can be said of these counts",
    **NOT_LOADED,
)


@router.post(
    "/evaluate",
    response_model=EvaluateResponse,
    openapi_extra=json_body(EvaluateRequest, bulk="columns counter_id, target_ts and hourly_count"),
    responses=_ERRORS,
)
async def evaluate(champion: Current, request: Request, horizon: HorizonParameter = 1) -> Response:
    """How good the champion's forecasts were for hours whose counts the caller knows.

    Each count is held against the forecast issued `horizon` days ahead (1: on the morning of its own day), for hours of
    the days that `GET /v1/model` names. Hours that the model was trained on are scored apart: they flatter it.
    """
    rows, wanted = await _counts(request, EvaluateRequest, horizon)
    return json_response(dumps(await compute(request, _evaluate, champion, rows, wanted)))


@router.post(
    "/drift",
    response_model=DriftResponse,
    openapi_extra=json_body(DriftRequest, bulk="columns counter_id, target_ts and hourly_count"),
    responses=_ERRORS,
)
async def drift(champion: Current, request: Request) -> Response:
    """Which counters moved apart from their city, against the same weekdays of the weeks before."""
    rows, _ = await _counts(request, DriftRequest, 1)
    return json_response(dumps(await compute(request, _drift, champion, rows)))


router.add_api_route(
    "/monitor",
    drift,
    methods=["POST"],
    name="monitor",
    operation_id="monitor",
    response_model=DriftResponse,
    openapi_extra=json_body(DriftRequest, bulk="columns counter_id, target_ts and hourly_count"),
    responses=_ERRORS,
    summary="The same as /drift, by its earlier name",
)


async def _counts(
    request: Request, model: type[EvaluateRequest] | type[DriftRequest], horizon: int
) -> tuple[pl.DataFrame, int]:
    """Counter, hour and count of each row of the body, and the horizon that it asks for."""
    sent, body = sent_form(request), await body_of(request)
    if sent is Form.JSON:
        question = parse(model, body)
        rows = pl.DataFrame(
            [(row.counter_id, row.target_ts, row.hourly_count) for row in question.rows],
            schema={"counter_id": pl.String, "target_ts": HOUR, "hourly_count": pl.Float64},
            orient="row",
        )
        horizon = question.horizon if isinstance(question, EvaluateRequest) else horizon
    else:
        rows = utc_hours(require_columns(await read_table(body, sent, _COUNTS), _COUNTS), "target_ts")
        rows = rows.with_columns(pl.col("hourly_count").cast(pl.Float64, strict=False))
        fine = pl.col("hourly_count").is_between(0, MAX_COUNT).fill_null(False)
        if (odd := rows.with_row_index("row").filter(~fine)).height:
            row = odd.get_column("row").item(0) + 1
            raise ProblemError(
                422, "invalid-request", f"hourly_count: row {row} is no number from 0 to {MAX_COUNT:,}"
            )
    if rows.select(KEYS).is_duplicated().any():
        raise ProblemError(422, "invalid-request", "rows: an hour of a counter is given twice")
    return rows, horizon


def _evaluate(champion: Champion, rows: pl.DataFrame, horizon: int) -> dict[str, Any]:
    scored = vintages_of_days(champion, rows, horizon)
    if "forecast" not in scored.columns or scored.is_empty():
        first, last = champion.bundle.first_issue_date, champion.bundle.issue_date
        raise ProblemError(
            422,
            "nothing-to-score",
            f"none of these hours has a forecast {horizon} days ahead; issue dates are {first} to {last}",
            issue_dates={"first": str(first), "last": str(last)},
        )
    # MASE needs the counts of the training, which a bundle does not carry.
    scored = scored.with_columns(mase_scale=pl.lit(None, pl.Float64))
    local = local_columns(scored, ts="target_ts", tz=champion.bundle.info.timezone)
    trained_until = champion.bundle.info.trained_until
    learned = pl.col("service_date") <= trained_until
    return {
        "model": vars(champion.ref),
        "horizon": horizon,
        "rows": rows.height,
        "unscored": rows.height - scored.height,
        "trained_until": str(trained_until),
        "metrics": _measures(local.filter(~learned)),
        "metrics_in_training": _measures(local.filter(learned)),
        "by_counter": accuracy_table(scored, ["counter_id"])
        .select("counter_id", "n", "truth_mean", "rmse", "mae", "wape", "bias")
        .to_dicts(),
    }


def _measures(scored: pl.DataFrame) -> dict[str, Any] | None:
    if scored.is_empty():
        return None
    return accuracy_table(scored).drop("mase").row(0, named=True)


def _drift(champion: Champion, rows: pl.DataFrame) -> dict[str, Any]:
    if near(champion, rows).height < rows.height:
        raise ProblemError(
            422,
            "outside-window",
            f"rows: hours lie within a year of the newest issue date, {champion.bundle.issue_date}",
        )
    current = local_columns(rows, ts="target_ts", tz=champion.bundle.info.timezone)
    days: list[date] = current.get_column("service_date").unique().sort().to_list()
    known = champion.bundle.counts
    reference = reference_days(
        current_days=days, available_days=known.get_column("service_date").unique().to_list()
    )
    if reference.kind == "none":
        raise ProblemError(
            422,
            "no-reference",
            f"the bundle has no days before {days[0]} to compare all of these weekdays with; "
            f"it holds the weeks before {champion.bundle.issue_date}",
        )
    before = known.filter(pl.col("service_date").is_in(reference.days))
    found = per_counter_drift(current=current, reference=before)
    tested = found.filter(pl.col("status") == "tested")
    drifted = tested.filter("drifted").get_column("counter_id").to_list()
    share = len(drifted) / tested.height if tested.height else None
    return {
        "model": vars(champion.ref),
        "drift_summary": {
            "drift_detected": None if share is None else bool(drifted),
            "drift_share": share,
            "drifted_counters": drifted,
            "tested_counters": tested.height,
            "reference_size": before.height,
            "current_size": current.height,
            "city_change": found.get_column("city_change").item(0),
        },
        "reference": {
            "kind": reference.kind,
            "first": str(reference.days[0]),
            "last": str(reference.days[-1]),
            "days": len(reference.days),
        },
        "counters": found.drop("city_change").to_dicts(),
    }
