"""Errors as RFC 9457 problem details (`application/problem+json`).

Belongs here: what a client is told when a request fails. What a client sent is not repeated beyond the names
it needs to find its mistake. Does not belong here: deciding that a request fails.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

log = logging.getLogger("bike_serving")

MEDIA_TYPE = "application/problem+json"
_SHOWN = 10


class ProblemError(Exception):
    """A request that cannot be answered, and why."""

    def __init__(
        self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers, self.more = status, kind, detail, headers, more

    def response(self) -> Response:
        """The answer to send."""
        return problem(self.status, self.kind, self.detail, self.headers, **self.more)


def problem(
    status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """A problem details answer; `kind` is its stable, machine-readable name, `more` its extension members."""
    body = {
        "type": f"urn:bike-serving:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **more,
    }
    # Escaped to ASCII: clients can send text that is no valid Unicode, and an error must always be sendable.
    return Response(json.dumps(body), status, headers, MEDIA_TYPE)


def some(values: Sequence[str]) -> str:
    """The first few values, for a sentence."""
    shown = ", ".join(value[:80] for value in values[:_SHOWN])
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN} more"


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    @app.exception_handler(ProblemError)
    async def own(_request: Request, error: ProblemError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        faults = [
            {
                "field": ".".join(str(part)[:80] for part in fault["loc"] if part != "body") or "body",
                "problem": fault["msg"].removeprefix("Value error, "),
            }
            for fault in error.errors()[:_SHOWN]
        ]
        malformed = any(fault["type"] == "json_invalid" for fault in error.errors())
        detail = "; ".join(f"{fault['field']}: {fault['problem']}" for fault in faults)
        if malformed:
            return problem(
                400, "malformed-json", "the body is not JSON; see /docs for an example", errors=faults
            )
        return problem(422, "invalid-request", detail, errors=faults)

    @app.exception_handler(HTTPException)
    async def framework(_request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, f"http-{error.status_code}", str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        log.error("unexpected failure", exc_info=error)
        return problem(500, "internal-error", "the service failed; its log says why")
