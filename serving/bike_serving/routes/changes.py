"""Trainings and changes of the champion: the service asks Dagster for them and never makes them itself.

Belongs here: which job answers which route, and what it is told. Does not belong here: whether a model may be promoted;
the platform decides that, and the service follows what it decided.
"""

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response

from bike_serving.forecasts import dumps
from bike_serving.orchestrator import JobRefusedError, Orchestrator, OrchestratorAwayError
from bike_serving.problems import ProblemError
from bike_serving.registry import NoChampionError, RegistryUnavailableError
from bike_serving.routes.common import compute, problems
from bike_serving.schemas import ChangeRequest, PromoteRequest, RunAccepted, RunState, TrainRequest

log = logging.getLogger("bike_serving")

router = APIRouter()
reading = APIRouter()
"""What a reader may ask about runs."""

_IDEMPOTENCY_TAG = "bike/idempotency_key"

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[A-Za-z0-9._-]{1,100}$", description="Asked twice with the same key, one run is started"
    ),
]

_AWAY = {"s503": "Dagster or MLflow is away or not set up"}
_STARTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": RunAccepted,
        "description": "The job was started",
        "headers": {"Location": {"description": "Where its state is", "schema": {"type": "string"}}},
    },
    **problems(
        s400="The body is not JSON",
        s404="There is no such version or run",
        s408="The body did not arrive in time",
        s409="The platform refuses to start this job so",
        s413="The body is too large",
        s422="A field is wrong",
        **_AWAY,
    ),
}


@router.post("/train", status_code=202, response_model=RunAccepted, responses=_STARTED)
async def train(wanted: TrainRequest, request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Train a challenger and let the platform decide whether it becomes champion."""
    config = {"train_until": wanted.train_until.isoformat()} if wanted.train_until else {}
    run_config = {"ops": {"trained_model": {"config": config}}} if config else {}
    return await _start(request, "retrain", run_config, wanted.reason, idempotency_key)


@router.post("/promote_champion", status_code=202, response_model=RunAccepted, responses=_STARTED)
async def promote_champion(
    wanted: PromoteRequest, request: Request, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a version champion. Gates that no person may pass hold here too."""
    version = wanted.version or await _version_of(request, wanted.run_id or "")
    return await _change(request, "promote", version, wanted.reason, idempotency_key)


@router.post("/rollback", status_code=202, response_model=RunAccepted, responses=_STARTED)
async def rollback(
    wanted: ChangeRequest, request: Request, idempotency_key: IdempotencyKey = None
) -> Response:
    """Go back to the champion before; `version` names the one to be withdrawn, by default the one that serves."""
    return await _change(request, "rollback", wanted.version, wanted.reason, idempotency_key)


@router.post("/approve", status_code=202, response_model=RunAccepted, responses=_STARTED)
async def approve(
    wanted: ChangeRequest, request: Request, idempotency_key: IdempotencyKey = None
) -> Response:
    """Approve a challenger that waits for a person."""
    return await _change(request, "approve", wanted.version, wanted.reason, idempotency_key)


@router.post("/reject", status_code=202, response_model=RunAccepted, responses=_STARTED)
async def reject(wanted: ChangeRequest, request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Reject a challenger that waits for a person."""
    return await _change(request, "reject", wanted.version, wanted.reason, idempotency_key)


@reading.get(
    "/runs/{run_id}",
    response_model=RunState,
    responses=problems(s404="There is no such run", s422="That is no run's id", **_AWAY),
)
async def run(
    request: Request,
    run_id: Annotated[str, Path(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")],
) -> RunState:
    """How a run goes that was started here or elsewhere."""
    try:
        found = await _orchestrator(request).run(run_id)
    except OrchestratorAwayError as error:
        raise _away(error) from error
    if found is None:
        raise ProblemError(404, "unknown-run", f"there is no run {run_id}")
    return RunState(**vars(found))


async def _change(
    request: Request, job: str, version: str | None, reason: str, idempotency_key: str | None
) -> Response:
    told = {"version": version or "", "actor": request.scope["caller"].id, "reason": reason}
    return await _start(request, job, {"ops": {f"{job}_champion": {"config": told}}}, reason, idempotency_key)


async def _start(
    request: Request, job: str, run_config: dict[str, Any], reason: str, idempotency_key: str | None
) -> Response:
    caller = request.scope["caller"].id
    tags = {"bike/actor": caller, "bike/reason": reason, "bike/request_id": request.scope["request_id"]}
    orchestrator = _orchestrator(request)
    try:
        run_id = None
        if idempotency_key is not None:
            # One caller's keys mean nothing to another's.
            tags[_IDEMPOTENCY_TAG] = f"{caller} {job} {idempotency_key}"
            run_id = await orchestrator.started_with(_IDEMPOTENCY_TAG, tags[_IDEMPOTENCY_TAG])
        run_id = run_id or await orchestrator.launch(job, run_config, tags)
    except OrchestratorAwayError as error:
        raise _away(error) from error
    except JobRefusedError as error:
        log.warning("%s", error)
        raise ProblemError(409, "job-refused", str(error)) from error
    place = f"/v1/runs/{run_id}"
    body = dumps({"run_id": run_id, "job": job, "location": place})
    return Response(body, 202, {"Location": place}, "application/json")


def _orchestrator(request: Request) -> Orchestrator:
    found: Orchestrator | None = request.app.state.orchestrator
    if found is None:
        raise ProblemError(
            503, "no-orchestrator", "this service starts no jobs; its operator sets BIKE_SERVING_DAGSTER_URL"
        )
    return found


async def _version_of(request: Request, run_id: str) -> str:
    try:
        found: str = await compute(request, request.app.state.registry.version_of_run, run_id)
    except RegistryUnavailableError as error:
        raise ProblemError(503, "registry-away", str(error), {"Retry-After": "30"}) from error
    except NoChampionError as error:
        raise ProblemError(404, "unknown-run", str(error)) from error
    return found


def _away(error: OrchestratorAwayError) -> ProblemError:
    log.error("%s: %s", error, error.__cause__)
    return ProblemError(503, "orchestrator-away", str(error), {"Retry-After": "30"})
