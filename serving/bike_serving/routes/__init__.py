"""The routes, a module a topic.

Belongs here: which routers make the API and under which prefix. Every route of the API is under `/v1`; the same path
without the prefix is an alias of the newest version, for hands and short scripts, and not in the documentation. The
Open Inference Protocol has a prefix of its own, and operators' routes have none.
Does not belong here: endpoints.
"""

from fastapi import FastAPI

from bike_serving.routes import (
    changes,
    counters,
    documentation,
    forecasts,
    inference,
    judging,
    model,
    operations,
    predict,
    webhook,
)
from bike_serving.routes.common import problems
from bike_serving.security.access import VERSION_PREFIX

_VERSIONED = (
    predict.router,
    counters.router,
    forecasts.router,
    judging.router,
    model.router,
    changes.reading,
    changes.router,
)

_GUARDED = problems(
    s401="No key or token, or one that is worth nothing here",
    s403="The role does not suffice",
    s429="The caller's limit is used up; Retry-After says for how long",
)
"""What the guard answers before any route sees a request."""


def install(app: FastAPI) -> None:
    """Add every route to the application."""
    for router in _VERSIONED:
        app.include_router(router, prefix=VERSION_PREFIX, responses=_GUARDED)
        app.include_router(router, include_in_schema=False)
    app.include_router(inference.router, responses=_GUARDED)
    app.include_router(operations.router)
    app.include_router(webhook.router)
    documentation.complete(app)
