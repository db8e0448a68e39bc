"""Log lines, for people or for machines.

Belongs here: their format, and that a line written while a request is answered carries its id. Does not belong here:
who asked what (`bike_serving.security.audit`); requests are counted in metrics, not logged.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class RequestContext:
    """ASGI middleware that lets log lines name the request they belong to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A worker thread that it starts inherits the id."""
        if request_id := scope.get("request_id"):
            _request_id.set(request_id)
        await self._app(scope, receive, send)


class JsonLines(logging.Formatter):
    """One JSON object a line: at (UTC), level, logger, message; request_id and exception where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id.get():
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_config(level: str, log_format: str) -> dict[str, Any]:
    """`logging.config.dictConfig` of the service: one handler, one line an event."""
    line = (
        {"()": "bike_serving.logs.JsonLines"}
        if log_format == "json"
        else {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": line},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            "bike_serving": {"level": level},
            "uvicorn.access": {"level": "WARNING"},
            "uvicorn": {"level": level},
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    }
