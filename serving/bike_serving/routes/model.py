"""What is loaded.

Belongs here: where the served model comes from and how good it was. Does not belong here: changing which model serves.
"""

from typing import Any

from fastapi import APIRouter

from bike_serving.champion import describe
from bike_serving.routes.common import NOT_LOADED, Current, problems
from bike_serving.schemas import ModelDescription

router = APIRouter()


@router.get("/model", response_model=ModelDescription, responses=problems(**NOT_LOADED))
async def model(champion: Current) -> dict[str, Any]:
    """What is loaded: where it comes from, what it can answer, how good it was when it was promoted."""
    return describe(champion)
