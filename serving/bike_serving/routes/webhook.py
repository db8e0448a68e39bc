"""MLflow's webhook: the registry says that something changed, and the service looks at once.

Belongs here: believing a webhook or not. A webhook is a nudge: what it says is not read, the registry is asked as at
every look, so that the worst a stolen one does is a look too many. It is signed with a secret of its own instead of
an API key, because MLflow sends none. Does not belong here: looking (`bike_serving.champion`), which goes on every
`poll_seconds` without any webhook, in every worker.
"""

import time

from fastapi import APIRouter, Request, Response

from bike_serving.problems import ProblemError
from bike_serving.routes.common import holder_of, metrics_of, problems
from bike_serving.webhooks import WebhookRefusedError, Webhooks

router = APIRouter()


@router.post(
    "/webhooks/mlflow",
    status_code=204,
    response_class=Response,
    responses=problems(
        s401="The signature, its age or its delivery id is wrong", s404="The service has no webhook secret"
    ),
)
async def mlflow_webhook(request: Request) -> Response:
    """Look at the registry now. For MLflow's webhooks of model version aliases and tags."""
    webhooks: Webhooks | None = request.app.state.webhooks
    if webhooks is None:
        raise ProblemError(404, "no-webhooks", "webhooks are off; set BIKE_SERVING_WEBHOOK_SECRET")
    try:
        webhooks.verify(request.headers, await request.body(), time.time())
    except WebhookRefusedError as error:
        metrics_of(request).webhooks.labels("refused").inc()
        raise ProblemError(401, "webhook-refused", str(error)) from error
    metrics_of(request).webhooks.labels("taken").inc()
    holder_of(request).look_soon()
    return Response(status_code=204)
