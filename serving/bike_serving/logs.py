"""Log lines, for people or for machines.

Belongs here: their format, and that a line written while a request is answered carries its id. Does not belong here:
who asked what (`bike_serving.security.audit`); requests are counted in metrics, not logged.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered; a worker thread that it starts inherits it."""


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
        if request := request_id.get():
            line["request_id"] = request
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
            "uvicorn": {"level": level},
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    }
