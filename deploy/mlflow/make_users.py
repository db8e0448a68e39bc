"""Makes MLflow's two users with the passwords of the environment, or gives them these passwords.

`platform` trains and promotes, `serving` reads which version to serve. The administrator, whom the server makes at its
first start, does nothing else. Doing it again changes nothing.
"""

import os

from mlflow.exceptions import RestException
from mlflow.server import get_app_client

USERS = {"platform": "MLFLOW_PLATFORM_PASSWORD", "serving": "MLFLOW_SERVING_PASSWORD"}


def main() -> None:
    """Make or change both users of the server at MLFLOW_TRACKING_URI, as the administrator."""
    users = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    for name, variable in USERS.items():
        try:
            users.create_user(name, os.environ[variable])
        except RestException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            users.update_user_password(name, os.environ[variable])


if __name__ == "__main__":
    main()
