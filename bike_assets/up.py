"""Everything on one laptop: Dagster's UI and daemon, MLflow and the REST service over one home.

Belongs here: starting processes, waiting until each answers, ending all of them together. Does not belong here:
what they serve.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bike_assets.core.errors import PermanentError
from bike_assets.settings import QUIET, REPOSITORY, Settings

START_SECONDS: Final = 180.0
"""How long a service may take until it answers; the first start of MLflow builds its database."""

STOP_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Ports:
    """Where each service listens."""

    dagster: int
    mlflow: int
    serving: int


@dataclass(frozen=True)
class _Service:
    name: str
    command: list[str]
    url: str | None
    environment: Mapping[str, str]


def serve(settings: Settings, host: str, ports: Ports, *, say: Callable[[str], None]) -> None:
    """Run all services until Ctrl-C or until one of them ends, then end the others.

    Args:
        settings: the home.
        host: address to listen on.
        ports: where.
        say: is told what runs where.

    Raises:
        PermanentError: a port is taken, or a service ended or did not answer in time.
    """
    for name, port in vars(ports).items():
        _require_free(name, host, port)
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    running: list[tuple[_Service, subprocess.Popen[bytes]]] = []
    stop = _stop_on_signals()
    try:
        for service in _services(settings, host, ports):
            running.append((service, _start(service, logs)))
        for service, process in running:
            if service.url:
                _wait_until_answering(service, process, logs, stop)
                say(f"{service.name:<12} {service.url}")
        say(f"logs         {logs}\nCtrl-C ends all of them.")
        while not stop():
            for service, process in running:
                if process.poll() is not None:
                    raise PermanentError(f"{service.name} ended; its last words are in {_log(logs, service)}")
            time.sleep(0.5)
    finally:
        _end(running)


def _services(settings: Settings, host: str, ports: Ports) -> list[_Service]:
    programs = Path(sys.executable).parent
    mlflow_url = f"http://{host}:{ports.mlflow}"
    workspace = str(REPOSITORY / "workspace.yaml")
    platform = {
        "DAGSTER_HOME": str(settings.dagster_home),
        "BIKE_HOME": str(settings.home),
        "BIKE_SOURCE": settings.source,
        "BIKE_DATA": os.pathsep.join(str(path) for path in settings.data),
        "BIKE_MLFLOW_UI_URL": mlflow_url,
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
    }
    return [
        _Service(
            "MLflow",
            [
                str(programs / "mlflow"),
                "server",
                "--backend-store-uri",
                settings.tracking_uri,
                "--default-artifact-root",
                settings.artifacts_dir.as_uri(),
                "--host",
                host,
                "--port",
                str(ports.mlflow),
                "--workers",
                "1",
            ],
            mlflow_url,
            {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        ),
        _Service(
            "Dagster UI",
            [
                str(programs / "dagster-webserver"),
                *("--host", host, "--port", str(ports.dagster), "--workspace", workspace),
            ],
            f"http://{host}:{ports.dagster}",
            platform,
        ),
        _Service(
            "daemon", [str(programs / "dagster-daemon"), "run", "--workspace", workspace], None, platform
        ),
        _Service(
            "REST service",
            [str(programs / "bike-serving")],
            f"http://{host}:{ports.serving}/health",
            {
                "BIKE_SERVING_MLFLOW_URL": mlflow_url,
                "BIKE_SERVING_MODEL_NAME": settings.model_name,
                "BIKE_SERVING_BUNDLES_DIR": str(settings.bundles_dir),
                "BIKE_SERVING_PUBLIC_KEY": str(settings.keys_dir / "bundle.pub"),
                "BIKE_SERVING_STATE_DIR": str(settings.home / "serving"),
                "BIKE_SERVING_HOST": host,
                "BIKE_SERVING_PORT": str(ports.serving),
            },
        ),
    ]


def _start(service: _Service, logs: Path) -> subprocess.Popen[bytes]:
    with _log(logs, service).open("ab") as log:
        return subprocess.Popen(
            service.command,
            cwd=REPOSITORY,
            env={**os.environ, **QUIET, **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A group of its own, so that Ctrl-C reaches us first and nothing a service started outlives it.
            start_new_session=True,
        )


def _wait_until_answering(
    service: _Service, process: subprocess.Popen[bytes], logs: Path, stop: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not stop():
        if process.poll() is not None:
            raise PermanentError(f"{service.name} ended at once; its last words are in {_log(logs, service)}")
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(str(service.url), timeout=2),  # noqa: S310  our own address
        ):
            return
        if time.monotonic() > deadline:
            raise PermanentError(
                f"{service.name} does not answer at {service.url} after {START_SECONDS:.0f} s; "
                f"see {_log(logs, service)}"
            )
        time.sleep(0.3)


def _end(running: list[tuple[_Service, subprocess.Popen[bytes]]]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for _, process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)
        deadline = time.monotonic() + STOP_SECONDS
        for _, process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))


def _stop_on_signals() -> Callable[[], bool]:
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: asked.append(received))
    return lambda: bool(asked)


def _require_free(name: str, host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PermanentError(
                f"port {port} on {host} is taken ({error.strerror}); choose another with --{name}-port"
            ) from error


def _log(logs: Path, service: _Service) -> Path:
    return logs / f"{service.name.lower().replace(' ', '-')}.log"
