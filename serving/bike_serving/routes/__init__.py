"""The routes, a module a topic.

Belongs here: which routers make the API and under which prefix. Every route of the API is under `/v1`; the same path
without the prefix is an alias of the newest version, for hands and short scripts, and not in the documentation.
Does not belong here: endpoints.
"""

from fastapi import FastAPI

from bike_serving.routes import counters, model, operations, predict, webhook

VERSION_PREFIX = "/v1"

_VERSIONED = (predict.router, counters.router, model.router)


def install(app: FastAPI) -> None:
    """Add every route to the application."""
    for router in _VERSIONED:
        app.include_router(router, prefix=VERSION_PREFIX)
        app.include_router(router, include_in_schema=False)
    app.include_router(operations.router)
    app.include_router(webhook.router)
