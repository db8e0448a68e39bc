"""Settings of the service, read from the environment with the prefix `BIKE_SERVING_`.

Belongs here: every value a deployment may change. Does not belong here: what differs between requests.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, TypeAdapter, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bike_serving.bucket import GOOGLE
from bike_serving.probation import ProbationRules

WORKERS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable that names the folder several workers count into; unset where there is one."""


def _checked_url(value: str | None) -> str | None:
    if value is None:
        return None
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
    mlflow_username: str = Field(default="", description="Name at that server, where it asks for one")
    mlflow_password: SecretStr | None = Field(default=None, description="And password")
    model_name: str = Field(default="bike-traffic", min_length=1, description="Registered model")
    alias: str = Field(default="champion", min_length=1, description="Alias of the version to serve")
    home: Path = Field(default=Path(".bike"), description="The platform's home: bundles, keys")
    bundles_dir: Path | None = Field(default=None, description="Folder of bundles; default home/bundles")
    bundles_url: str = Field(
        default="",
        pattern=r"^(gs://[a-z0-9][a-z0-9._-]+(/[^?#]*)?)?$",
        description="Bucket of bundles, gs://bucket/folder, from which they are fetched into that folder",
    )
    bundles_endpoint: Annotated[str, AfterValidator(_checked_url)] = Field(
        default=GOOGLE, description="Where Cloud Storage is; another address is an emulator's"
    )
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
    webhook_secret: SecretStr | None = Field(
        default=None, description="Secret of MLflow's webhook; without it webhooks are refused"
    )
    probation_seconds: float = Field(
        default=ProbationRules.probation_seconds, ge=0, description="How long a new champion is compared"
    )
    rollback_requests: int = Field(
        default=ProbationRules.min_requests, ge=1, description="Answers needed before it may be rolled back"
    )
    rollback_error_margin: float = Field(
        default=ProbationRules.error_margin, gt=0, le=1, description="Failed share by which it may be worse"
    )
    rollback_slow_factor: float = Field(
        default=ProbationRules.slow_factor,
        gt=1,
        description="Times the earlier 95th percentile that is too slow",
    )
    rollback_slow_seconds: float = Field(
        default=ProbationRules.slow_seconds, gt=0, description="95th percentile that is never too slow"
    )
    workers: int = Field(default=1, ge=1, le=64, description="Processes that answer")
    log_format: Literal["text", "json"] = Field(default="text", description="Lines for people or machines")
    tracing: bool = Field(
        default=False, description="Send OpenTelemetry traces, to where OTEL_EXPORTER_OTLP_ENDPOINT says"
    )
    dagster_url: Annotated[str | None, AfterValidator(_checked_url)] = Field(
        default=None, description="Dagster web server that starts trainings and promotions; none by default"
    )
    dagster_location: str = Field(default="bike_assets", description="Its code location with our jobs")
    env: Literal["local", "compose", "prod"] = Field(
        default="local", description="prod refuses to start without keys; the others make their first ones"
    )
    keys_file: Path | None = Field(
        default=None, description="Hashes of API keys; default keys.json beside the last good bundle"
    )
    oidc_issuer: str | None = Field(default=None, description="Identity provider whose tokens are taken")
    oidc_audience: str | None = Field(default=None, description="Audience that its tokens have for us")
    oidc_jwks: str | None = Field(
        default=None, description="File or URL of its public keys; default as the issuer's discovery says"
    )
    oidc_role_claim: str = Field(default="roles", description="Claim that names reader or admin")
    predict_per_minute: int = Field(
        default=100, ge=0, le=10**6, description="Forecasting requests of a caller; 0 for no limit"
    )
    train_per_hour: int = Field(
        default=10, ge=0, le=10**6, description="Trainings and changes of a caller; 0 for no limit"
    )
    audit_reads: bool = Field(
        default=True, description="Whether the access log has requests that changed and broke nothing, too"
    )
    body_timeout_seconds: float = Field(default=10.0, gt=0, le=600, description="For a body to arrive")
    request_timeout_seconds: float = Field(default=30.0, gt=0, le=600, description="For an answer to be made")
    cors_origins: str = Field(
        default="", description="Origins, with commas between, whose pages may ask; none by default"
    )
    experiment: Literal["off", "shadow", "ab"] = Field(
        default="off", description="shadow compares each answer with the challenger's, ab lets it answer some"
    )
    experiment_alias: str = Field(default="challenger", min_length=1, description="Alias of the challenger")
    experiment_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of callers or counters for the challenger"
    )
    experiment_by: Literal["caller", "counter"] = Field(
        default="caller", description="What ab shares out; each stays with its version"
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on")

    @model_validator(mode="after")
    def _provider_is_whole(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("oidc_audience must be set with oidc_issuer, or tokens for others would do here")
        return self

    @property
    def mlflow_credentials(self) -> tuple[str, str] | None:
        """Name and password to show MLflow; None for a server that asks nobody."""
        if self.mlflow_password is None:
            return None
        return self.mlflow_username, self.mlflow_password.get_secret_value()

    @property
    def bundles_path(self) -> Path:
        """Folder of bundles."""
        return self.bundles_dir or self.home / "bundles"

    @property
    def public_key_path(self) -> Path:
        """Public key that bundles must be signed for."""
        return self.public_key or self.home / "keys" / "bundle.pub"

    @property
    def state_folder(self) -> Path:
        """Folder of what is remembered between starts and shared by workers."""
        return self.state_dir or self.home / "serving"

    @property
    def probation(self) -> ProbationRules:
        """When a new champion is taken back."""
        return ProbationRules(
            self.probation_seconds,
            self.rollback_requests,
            self.rollback_error_margin,
            self.rollback_slow_factor,
            self.rollback_slow_seconds,
        )

    @property
    def keys_path(self) -> Path:
        """File of API keys."""
        return self.keys_file or self.state_folder / "keys.json"
