"""What is loaded, and what is registered.

Belongs here: where the served model and the others come from and how good they were. Does not belong here: changing
which model serves.
"""

from typing import Any

from fastapi import APIRouter, Request

from bike_serving.champion import describe
from bike_serving.problems import ProblemError
from bike_serving.registry import MlflowRegistry, NoChampionError, RegistryUnavailableError
from bike_serving.routes.common import NOT_LOADED, Current, compute, problems, settings_of
from bike_serving.schemas import ModelDescription, ModelSummary

router = APIRouter()


@router.get("/model", response_model=ModelDescription, responses=problems(**NOT_LOADED))
async def model(champion: Current) -> dict[str, Any]:
    """What is loaded: where it comes from, what it can answer, how good it was when it was promoted."""
    return describe(champion)


@router.get(
    "/model_summary",
    response_model=list[ModelSummary],
    responses=problems(s404="No such model is registered", s503="MLflow is away"),
)
async def model_summary(request: Request) -> list[dict[str, Any]]:
    """The newest versions that MLflow knows, newest first, in the form of this service's predecessor."""
    registry: MlflowRegistry = request.app.state.registry
    try:
        versions = await compute(request, registry.versions)
    except RegistryUnavailableError as error:
        raise ProblemError(503, "registry-away", str(error), {"Retry-After": "30"}) from error
    except NoChampionError as error:
        raise ProblemError(404, "unknown-model", str(error)) from error
    env = settings_of(request).env
    return [{**vars(version), "env": env, "test_mode": False} for version in versions]
