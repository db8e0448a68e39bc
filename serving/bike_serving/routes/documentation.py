"""The API's description (OpenAPI): what FastAPI cannot know of routes that read their bodies themselves.

Belongs here: the models of such bodies, of problems, and how callers prove who they are. Does not belong here: what a
single route says of itself.
"""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from bike_serving.schemas import (
    DriftRequest,
    EvaluateRequest,
    InferRequest,
    PredictRequest,
    Problem,
    RecordsRequest,
)
from bike_serving.security.access import rule_of

_MODELS = (DriftRequest, EvaluateRequest, InferRequest, PredictRequest, Problem, RecordsRequest)
_METHODS = ("get", "post")


def complete(app: FastAPI) -> None:
    """Make the application's description whole."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generated())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    components["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, or a token of the provider",
        },
    }
    document["security"] = [{"ApiKey": []}, {"Bearer": []}]
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if operation := operations.get(method):
                _complete_operation(path, operation)
    for unused in ("HTTPValidationError", "ValidationError"):  # every error is a problem
        schemas.pop(unused, None)
    return document


def _complete_operation(path: str, operation: dict[str, Any]) -> None:
    if rule_of(path).role is None:
        operation["security"] = []
    responses = operation["responses"]
    invalid = responses.get("422", {}).get("content", {}).get("application/json", {})
    if invalid.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]  # FastAPI's own, where no parameter can be wrong
