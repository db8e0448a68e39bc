"""A fake of Google's metadata server and of Secret Manager's REST API, as their documentation describes both.

Belongs here: who gets a token, and what a version answers to whom. Does not belong here: making secrets.
"""

import base64
import secrets
from collections.abc import Mapping
from typing import Final

from bike_assets_tests.fakes.service import Answer, FakeService

TOKEN_PATH: Final = "/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105  a path


class FakeSecretManager(FakeService):
    """Both services at one address.

    Attributes:
        versions: what each version holds, by `projects/P/secrets/S/versions/V`.
        refused: versions that this workload's account may not read.
    """

    def __init__(self) -> None:
        """Services that do not listen yet and hold nothing."""
        super().__init__()
        self.versions: dict[str, bytes] = {}
        self.refused: set[str] = set()
        self._token = secrets.token_urlsafe()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead Google's programs here."""
        return {
            "GCE_METADATA_HOST": self.url.removeprefix("http://"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"{self.url}/",
        }

    def respond(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        """A token for who says that he asks Google's metadata, a version for who has that token."""
        del query
        if path == TOKEN_PATH:
            if headers.get("Metadata-Flavor") != "Google":
                return Answer(403, "text/html", b"Missing required header")
            return Answer.json({"access_token": self._token, "expires_in": 3599, "token_type": "Bearer"})
        if headers.get("Authorization") != f"Bearer {self._token}":
            return _error(401, "UNAUTHENTICATED")
        name = path.removeprefix("/v1/").removesuffix(":access")
        if name in self.refused:
            return _error(403, "PERMISSION_DENIED")
        if name not in self.versions or path != f"/v1/{name}:access":
            return _error(404, "NOT_FOUND")
        data = base64.b64encode(self.versions[name]).decode()
        return Answer.json({"name": name, "payload": {"data": data}})


def _error(code: int, status: str) -> Answer:
    return Answer.json({"error": {"code": code, "message": status.lower(), "status": status}}, code)
