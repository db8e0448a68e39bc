"""Settings of the service, read from the environment with the prefix `BIKE_SERVING_`.

Belongs here: every value a deployment may change. Does not belong here: what differs between requests.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, HttpUrl, TypeAdapter
from pydantic_settings import BaseSettings, SettingsConfigDict


def _checked_url(value: str) -> str:
    TypeAdapter(HttpUrl).validate_python(value)
    return value.rstrip("/")


class Settings(BaseSettings):
    """Where the champion comes from and how the service listens. Paths default to places in `home`."""

    model_config = SettingsConfigDict(
        env_prefix="BIKE_SERVING_",
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        env_ignore_empty=True,
    )

    mlflow_url: Annotated[str, AfterValidator(_checked_url)] = Field(
        default="http://127.0.0.1:5000", description="MLflow server whose registry names the champion"
    )
    model_name: str = Field(default="bike-traffic", min_length=1, description="Registered model")
    alias: str = Field(default="champion", min_length=1, description="Alias of the version to serve")
    home: Path = Field(default=Path(".bike"), description="The platform's home: bundles, keys")
    bundles_dir: Path | None = Field(default=None, description="Folder of bundles; default home/bundles")
    public_key: Path | None = Field(
        default=None, description="Key bundles are signed for; default home/keys/bundle.pub"
    )
    state_dir: Path | None = Field(
        default=None, description="Remembers the last good bundle; default home/serving"
    )
    poll_seconds: float = Field(
        default=2.0, gt=0, le=3600, description="Seconds between looks at the registry"
    )
    registry_timeout_seconds: float = Field(
        default=3.0, gt=0, le=60, description="Patience with the registry"
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on")

    @property
    def bundles_path(self) -> Path:
        """Folder of bundles."""
        return self.bundles_dir or self.home / "bundles"

    @property
    def public_key_path(self) -> Path:
        """Public key that bundles must be signed for."""
        return self.public_key or self.home / "keys" / "bundle.pub"

    @property
    def state_path(self) -> Path:
        """File that remembers the last good bundle."""
        return (self.state_dir or self.home / "serving") / "last_good.json"
