"""The Open Inference Protocol, version 2, so that clients of KServe, Triton and MLServer work unchanged.

Belongs here: that protocol's routes and tensors. Does not belong here: anything that our own API does not answer too.
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from importlib.metadata import version as installed
from typing import Any

import polars as pl
from fastapi import APIRouter, Request, Response

from bike_serving.champion import Champion
from bike_serving.forecasts import dumps
from bike_serving.media import body_of
from bike_serving.problems import ProblemError
from bike_serving.routes.common import (
    NOT_LOADED,
    Current,
    compute,
    json_body,
    json_response,
    metrics_of,
    parse,
    problems,
)
from bike_serving.schemas import (
    InferRequest,
    InferResponse,
    InputTensor,
    Live,
    ModelMetadata,
    ModelReadiness,
    Readiness,
    ServerMetadata,
)
from bike_serving.vintages import (
    KEYS,
    VALUES,
    issue_date_of,
    of_counters,
    of_rows,
    require_columns,
    utc_hours,
)

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

_MISSING = {"s404": "There is no such model or version", **NOT_LOADED}
_INFER = problems(
    s400="The body is not JSON",
    s408="The body did not arrive in time",
    s413="The body is too large",
    s422="A tensor is wrong, or an hour cannot be forecast",
    **_MISSING,
)


@router.get("", response_model=ServerMetadata)
async def server() -> dict[str, Any]:
    """Which server this is."""
    return {"name": "bike-serving", "version": installed("bike-serving"), "extensions": []}


@router.get("/health/live", response_model=Live)
async def live() -> dict[str, bool]:
    """Whether the process lives."""
    return {"live": True}


@router.get("/health/ready", response_model=Readiness, responses=problems(**NOT_LOADED))
async def ready(champion: Current) -> dict[str, bool]:  # noqa: ARG001
    """Whether a model is loaded."""
    return {"ready": True}


@router.get("/models/{model_name}", response_model=ModelMetadata, responses=problems(**_MISSING))
async def metadata(champion: Current, model_name: str) -> dict[str, Any]:
    """The tensors of the model that serves."""
    return _metadata(champion, model_name, None)


@router.get(
    "/models/{model_name}/versions/{model_version}",
    response_model=ModelMetadata,
    responses=problems(**_MISSING),
)
async def metadata_of_version(champion: Current, model_name: str, model_version: str) -> dict[str, Any]:
    """The tensors of a version; only the one that serves is there."""
    return _metadata(champion, model_name, model_version)


@router.get("/models/{model_name}/ready", response_model=ModelReadiness, responses=problems(**_MISSING))
async def model_ready(champion: Current, model_name: str) -> dict[str, Any]:
    """Whether the model serves."""
    return _readiness(champion, model_name, None)


@router.get(
    "/models/{model_name}/versions/{model_version}/ready",
    response_model=ModelReadiness,
    responses=problems(**_MISSING),
)
async def version_ready(champion: Current, model_name: str, model_version: str) -> dict[str, Any]:
    """Whether this version serves."""
    return _readiness(champion, model_name, model_version)


@router.post(
    "/models/{model_name}/infer",
    response_model=InferResponse,
    openapi_extra=json_body(InferRequest),
    responses=_INFER,
)
async def infer(champion: Current, request: Request, model_name: str) -> Response:
    """Forecasts for rows of the tensors `counter_id` and `target_ts` (BYTES: text; hours in ISO 8601)."""
    return await _answer(champion, request, model_name, None)


@router.post(
    "/models/{model_name}/versions/{model_version}/infer",
    response_model=InferResponse,
    openapi_extra=json_body(InferRequest),
    responses=_INFER,
)
async def infer_with_version(
    champion: Current, request: Request, model_name: str, model_version: str
) -> Response:
    """The same, refused when another version serves."""
    return await _answer(champion, request, model_name, model_version)


def _require(champion: Champion, name: str, version: str | None) -> None:
    if name != champion.ref.name or version not in (None, champion.ref.version):
        raise _problem(
            404, "unknown-model", f"{champion.ref.name} version {champion.ref.version} serves, nothing else"
        )


def _problem(status: int, kind: str, detail: str) -> ProblemError:
    """A problem that also has the member `error` in which the protocol's clients look for a reason."""
    return ProblemError(status, kind, detail, error=detail)


def _metadata(champion: Champion, name: str, version: str | None) -> dict[str, Any]:
    _require(champion, name, version)
    return {
        "name": name,
        "versions": [champion.ref.version],
        "platform": champion.model_type,
        "inputs": [{"name": key, "datatype": "BYTES", "shape": [-1]} for key in KEYS],
        "outputs": [{"name": value, "datatype": "FP64", "shape": [-1]} for value in VALUES],
    }


def _readiness(champion: Champion, name: str, version: str | None) -> dict[str, Any]:
    _require(champion, name, version)
    return {"name": name, "ready": True}


async def _answer(champion: Champion, request: Request, name: str, version: str | None) -> Response:
    _require(champion, name, version)
    question = parse(InferRequest, await body_of(request))
    try:
        frame = await compute(request, _forecasts, champion, question)
    except ProblemError as error:
        raise ProblemError(
            error.status, error.kind, error.detail, error.headers, **{**error.more, "error": error.detail}
        ) from error
    metrics_of(request).count_forecasts(champion.model_type, champion.ref.version, frame.height)
    wanted: list[str] = [output.name for output in question.outputs]
    wanted = wanted or list(VALUES)
    answered = {
        "model_name": name,
        "model_version": champion.ref.version,
        **({} if question.id is None else {"id": question.id}),
        "outputs": [
            {"name": value, "datatype": "FP64", "shape": [frame.height], "data": frame[value].to_list()}
            for value in wanted
        ],
    }
    return json_response(dumps(answered))


def _forecasts(champion: Champion, question: InferRequest) -> pl.DataFrame:
    tensors: dict[str, InputTensor] = {tensor.name: tensor for tensor in question.inputs}
    if set(tensors) != set(KEYS) or len(tensors) != len(question.inputs):
        raise _problem(422, "invalid-tensors", f"inputs are the tensors {' and '.join(KEYS)}, each once")
    sizes = {tensor.shape[0] for tensor in question.inputs} | {len(tensor.data) for tensor in question.inputs}
    if len(sizes) != 1:
        raise _problem(
            422, "invalid-tensors", "counter_id and target_ts have the same shape [n] and n values each"
        )
    rows = pl.DataFrame({key: tensors[key].data for key in KEYS}, schema=dict.fromkeys(KEYS, pl.String))
    day = issue_date_of(champion, None)
    rows = utc_hours(require_columns(rows, KEYS), "target_ts")
    return of_rows(of_counters(champion, None, day), rows, day)
