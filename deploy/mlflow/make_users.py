"""Makes MLflow's two users with the passwords of the environment, or gives them these passwords, and the model.

`platform` trains and promotes, `serving` reads which version to serve. The administrator, whom the server makes at its
first start, does nothing else. The registered model is there before its first version, because of a model that is not
there MLflow says that one may not see it. Doing it again changes nothing.
"""

import os

from mlflow import MlflowClient
from mlflow.exceptions import RestException
from mlflow.server import get_app_client

USERS = {"platform": "MLFLOW_PLATFORM_PASSWORD", "serving": "MLFLOW_SERVING_PASSWORD"}


def main() -> None:
    """Make or change both users of MLFLOW_TRACKING_URI as its administrator, and the model as `platform`."""
    users = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    for name, variable in USERS.items():
        try:
            users.create_user(name, os.environ[variable])
        except RestException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            users.update_user_password(name, os.environ[variable])
    # A model belongs to who made it.
    os.environ |= {
        "MLFLOW_TRACKING_USERNAME": "platform",
        "MLFLOW_TRACKING_PASSWORD": os.environ[USERS["platform"]],
    }
    try:
        MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).create_registered_model(
            os.environ.get("BIKE_MODEL_NAME", "bike-traffic")
        )
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


if __name__ == "__main__":
    main()
