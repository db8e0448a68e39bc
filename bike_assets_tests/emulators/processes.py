"""Servers that stand in for Google's, each a process of its own that a test starts and ends.

Belongs here: getting and starting them. Does not belong here: what is asked of them. Each is installed by uv into an
environment of its own, because none can share ours. A test is skipped, with the reason, where one cannot be had.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

HERE = Path(__file__).resolve().parent
START_SECONDS = 60.0

BIGQUERY = (
    "local-bigquery==0.3.2",
    # Its database, at the newest version whose extensions are packages.
    "duckdb==1.5.5",
    "duckdb-extensions==1.5.5",
    "duckdb-extension-ducklake==1.5.5",
    "duckdb-extension-spatial==1.5.5",
)


@dataclass(frozen=True)
class BigQueryEmulator:
    """Where the emulator listens."""

    endpoint: str
    storage_endpoint: str

    def environment(self, project: str = "city") -> dict[str, str]:
        """The settings that lead to it. A project of its own is a warehouse of its own."""
        return {
            "BIKE_ENV": "prod",
            "BIKE_BIGQUERY_PROJECT": project,
            "BIKE_BIGQUERY_LOCATION": "US",
            "BIKE_BIGQUERY_ENDPOINT": self.endpoint,
            "BIKE_BIGQUERY_STORAGE_ENDPOINT": self.storage_endpoint,
        }


@contextlib.contextmanager
def bigquery_emulator() -> Iterator[BigQueryEmulator]:
    """An empty BigQuery. Skips where no Python 3.13 or no package is to be had."""
    rest, grpc = free_port(), free_port()
    with TemporaryDirectory() as data:
        command = [
            *in_own_environment(BIGQUERY, python_313(), probe="import local_bigquery, duckdb_extensions"),
            *("python", str(HERE / "run_bigquery.py"), "serve", "--host", "127.0.0.1"),
            *("--port", str(rest), "--grpc-port", str(grpc), "--project", "city", "--data-dir", data),
        ]
        with serving(command, rest, {"TZ": "UTC"}):
            yield BigQueryEmulator(f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}")


def python_313() -> str:
    """A Python 3.13 that runs: this one, one on PATH, or one that pyenv has and does not show. Skips without."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in ("python3.13", *map(str, sorted(pyenv.glob("3.13.*/bin/python"), reverse=True))):
        found = shutil.which(candidate)
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    pytest.skip("the emulator of BigQuery needs a Python 3.13, and there is none on PATH or in pyenv")


def in_own_environment(packages: tuple[str, ...], python: str, probe: str) -> list[str]:
    """The start of a command line in an environment with these packages. Skips where they are not to be had."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip(f"{packages[0]} is installed by uv, and uv is not on PATH")
    wanted = [word for package in packages for word in ("--with", package)]
    command = [uv, "run", "--quiet", "--no-project", "--python", python, *wanted]
    there = subprocess.run(
        [*command, "python", "-c", probe],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if there.returncode:
        pytest.skip(f"{packages[0]} cannot be had here: {there.stderr.strip().splitlines()[-1:]}")
    return command


@contextlib.contextmanager
def serving(command: list[str], port: int, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """A server, from its first answer on until it is killed with all that it started."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command,
                env=environment(**(variables or {})),
                stdout=output,
                stderr=output,
                start_new_session=True,
            ) as process,
        ):
            try:
                deadline = time.monotonic() + START_SECONDS
                while not answers(port):
                    assert process.poll() is None, f"the server did not start: {log.read_text()[-2000:]}"
                    assert time.monotonic() < deadline, (
                        f"the server does not answer: {log.read_text()[-2000:]}"
                    )
                    time.sleep(0.1)
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def environment(**variables: str) -> dict[str, str]:
    """The environment of a server: ours without what would lead it into our packages and settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BIKE_", "PYTHON")) and name not in ("VIRTUAL_ENV", "UV_PYTHON")
    }
    return {**kept, **variables}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
