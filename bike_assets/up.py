"""Everything on one laptop: Dagster's UI and daemon, MLflow and the REST service over one home.

Belongs here: starting processes, waiting until each answers, ending all of them together. Does not belong here:
what they serve.
"""

import contextlib
import errno
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from bike_assets.core.errors import PermanentError
from bike_assets.home import source_environment
from bike_assets.settings import QUIET, REPOSITORY, Settings

START_SECONDS: Final = 180.0
"""How long a service may take until it answers; the first start of MLflow builds its database."""

READY_SECONDS: Final = 30.0
"""How long a service that answers may say that it is not ready; the REST service loads its model first."""

STOP_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Ports:
    """Where each service listens."""

    dagster: int
    mlflow: int
    serving: int

    def require_free(self, host: str) -> None:
        """Whether all of them can be opened, asked before anything that takes time.

        Raises:
            PermanentError: one is taken, or the address is not this machine's.
        """
        for name, port in vars(self).items():
            _require_free(name, host, port)


@dataclass(frozen=True)
class _Service:
    name: str
    command: list[str]
    url: str | None
    environment: Mapping[str, str]

    @property
    def shown(self) -> str:
        """What a person opens."""
        return str(self.url).removesuffix("/ready")


def reachable(host: str) -> str:
    """The address under which this machine's browser reaches what listens on `host`."""
    with contextlib.suppress(ValueError):
        if ip_address(host).is_unspecified:
            return "127.0.0.1"
    return host


def serve(settings: Settings, host: str, ports: Ports, *, say: Callable[[str], None]) -> None:
    """Run all services until Ctrl-C, SIGTERM or a closed terminal, or until one of them ends; then end the others.

    Args:
        settings: the home.
        host: address to listen on.
        ports: where.
        say: is told what runs where.

    Raises:
        PermanentError: a port is taken, the home is served already, or a service ended or did not answer in time.
    """
    ports.require_free(host)
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    running: list[tuple[_Service, subprocess.Popen[bytes]]] = []
    with _alone(settings.home):
        stop = _stop_on_signals()
        try:
            for service in _services(settings, host, ports):
                running.append((service, _start(service, logs)))
            for service, process in running:
                if service.url:
                    status = _wait_until_answering(service, process, logs, stop)
                    if not stop():
                        say(f"{service.name:<12} {service.shown}")
                    if status not in (None, HTTPStatus.OK):
                        say(f"{service.name} answers {status} and keeps trying; why: {_log(logs, service)}")
            if not stop():
                say(_how_to_ask(settings, reachable(host), ports))
                say(f"{'logs':<12} {logs}\nCtrl-C ends all of them.")
            while not stop():
                for service, process in running:
                    if process.poll() is not None:
                        raise PermanentError(_last_words(service, process, logs))
                time.sleep(0.5)
            say("ending")
        finally:
            _end([process for _, process in running])


def _services(settings: Settings, host: str, ports: Ports) -> list[_Service]:
    programs = Path(sys.executable).parent
    shown = reachable(host)
    mlflow_url = f"http://{shown}:{ports.mlflow}"
    workspace = str(REPOSITORY / "workspace.yaml")
    platform = {
        "DAGSTER_HOME": str(settings.dagster_home),
        "BIKE_HOME": str(settings.home),
        **source_environment(settings),
        "BIKE_MLFLOW_UI_URL": mlflow_url,
        "BIKE_DAGSTER_UI_URL": f"http://{shown}:{ports.dagster}",
        "BIKE_SERVING_URL": f"http://{shown}:{ports.serving}",
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
            f"http://{shown}:{ports.dagster}",
            platform,
        ),
        _Service(
            "daemon", [str(programs / "dagster-daemon"), "run", "--workspace", workspace], None, platform
        ),
        _Service(
            "REST service",
            [str(programs / "bike-serving")],
            f"http://{shown}:{ports.serving}/ready",
            {
                "BIKE_SERVING_MLFLOW_URL": mlflow_url,
                "BIKE_SERVING_DAGSTER_URL": f"http://{shown}:{ports.dagster}",
                "BIKE_SERVING_MODEL_NAME": settings.model_name,
                "BIKE_SERVING_BUNDLES_DIR": str(settings.bundles_dir),
                "BIKE_SERVING_PUBLIC_KEY": str(settings.keys_dir / "bundle.pub"),
                "BIKE_SERVING_STATE_DIR": str(settings.home / "serving"),
                "BIKE_SERVING_HOST": host,
                "BIKE_SERVING_PORT": str(ports.serving),
            },
        ),
    ]


def _how_to_ask(settings: Settings, host: str, ports: Ports) -> str:
    """The command for a first answer of the REST service. Names the file that its key is in, never the key."""
    key = settings.home / "serving" / "reader.key"
    return f"""ask          curl -H "X-API-Key: $(cat {shlex.quote(str(key))})" http://{host}:{ports.serving}/v1/counters"""


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
) -> int | None:
    """The status a service answers with; None when asked to stop before it answered.

    One that answers with an error is up: a home whose model no longer fits the code is mended in the UI.
    """
    deadline = time.monotonic() + START_SECONDS
    patience = None
    while not stop():
        if process.poll() is not None:
            raise PermanentError(_last_words(service, process, logs))
        try:
            with urllib.request.urlopen(str(service.url), timeout=2) as answer:  # noqa: S310  our own address
                return int(answer.status)
        except urllib.error.HTTPError as error:
            patience = patience or time.monotonic() + READY_SECONDS
            if time.monotonic() > patience:
                return error.code
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise PermanentError(
                f"{service.name} does not answer at {service.url} after {START_SECONDS:.0f} s; "
                f"see {_log(logs, service)}"
            )
        time.sleep(0.3)
    return None


def _last_words(service: _Service, process: subprocess.Popen[bytes], logs: Path) -> str:
    log = _log(logs, service)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = f": {lines[-1].strip()[:200]}" if lines else ""
    return f"{service.name} ended with status {process.returncode}{said}; see {log} and start again"


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask every group to end, then make it: what a service started, runs included, ends with it."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_alive(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)


def _alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether any process of a service's group is left."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _stop_on_signals() -> Callable[[], bool]:
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: asked.append(received))
    return lambda: bool(asked)


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the home: two daemons over one would start everything twice."""
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PermanentError(
                f"{home} is served by another `bike-assets up`; end that one or give another --home"
            ) from error
        yield


def _require_free(name: str, host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PermanentError(
                    f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host or --{name}-port"
                ) from error
            raise PermanentError(
                f"port {port} on {host} is taken; end what listens there or choose another with --{name}-port"
            ) from error


def _log(logs: Path, service: _Service) -> Path:
    return logs / f"{service.name.lower().replace(' ', '-')}.log"
