"""Servers of production, each a process of its own that a test starts and ends: Google's emulated, PostgreSQL real.

Belongs here: getting and starting them. Does not belong here: what is asked of them. uv installs an emulator into
an environment of its own, because none can share ours. A test is skipped, with the reason, where one cannot be had.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

from bike_assets.settings import QUIET, REPOSITORY

HERE = Path(__file__).resolve().parent
START_SECONDS = 180.0

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


STORAGE = ("gcp-storage-emulator==2026.7.19",)


@contextlib.contextmanager
def storage_emulator() -> Iterator[str]:
    """The address of a Cloud Storage without buckets, which keeps preconditions. Skips where it is not to be had."""
    port = free_port()
    command = [
        *in_own_environment(STORAGE, sys.executable, probe="import gcp_storage_emulator"),
        *("python", str(HERE / "run_storage.py"), "start", "--host", "127.0.0.1", "--port", str(port)),
        "--in-memory",
    ]
    with serving(command, port):
        yield f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL with the databases that `deploy/postgres/init.sh` makes, each of an owner of its name."""

    port: int
    passwords: Mapping[str, str]
    programs: Path

    def url(self, name: str) -> str:
        """The address of a database, as SQLAlchemy writes it."""
        return f"postgresql+psycopg2://{name}:{quote(self.passwords[name], safe='')}@127.0.0.1:{self.port}/{name}"

    def instance(self, folder: Path) -> dict[str, str]:
        """The variables of Dagster's instance in this server: that of the containers, with a folder as its place."""
        home = folder / "dagster"
        home.mkdir()
        config = (REPOSITORY / "deploy" / "dagster.yaml").read_text(encoding="utf-8")
        for theirs, ours in (("port: 5432", f"port: {self.port}"), ("/var/lib/dagster", str(home))):
            assert theirs in config
            config = config.replace(theirs, ours)
        (home / "dagster.yaml").write_text(config, encoding="utf-8")
        return {
            "DAGSTER_HOME": str(home),
            "DAGSTER_POSTGRES_HOST": "127.0.0.1",
            "DAGSTER_POSTGRES_USER": "dagster",
            "DAGSTER_POSTGRES_DB": "dagster",
            "DAGSTER_POSTGRES_PASSWORD": self.passwords["dagster"],
        }


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server as compose starts it. Skips where PostgreSQL is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = shutil.which("initdb")
    if not installed and found is None:
        pytest.skip(
            "PostgreSQL's server is not installed: initdb is neither on PATH nor in /usr/lib/postgresql"
        )
    programs = installed[-1].parent if installed else Path(str(found)).parent
    # PostgreSQL refuses to serve as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    port = free_port()
    passwords = {name: f"{name} 'p/w:@" for name in ("postgres", "dagster", "mlflow")}
    with TemporaryDirectory(prefix="pg") as folder:
        Path(folder).chmod(0o777)
        secret = Path(folder) / "password"
        secret.write_text(passwords["postgres"])
        secret.chmod(0o644)
        data = f"{folder}/data"
        made = subprocess.run(
            [*as_user, str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "scram-sha-256",
             f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--locale=C"],
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        options = ["-p", f"{port}", "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with serving([*as_user, str(programs / "postgres"), "-D", data, *options], port):
            # It listens a moment before it lets anybody in.
            ready = [str(programs / "pg_isready"), "--quiet", "--host", "127.0.0.1", "--port", f"{port}"]
            deadline = time.monotonic() + START_SECONDS
            while subprocess.run(ready, check=False).returncode:
                assert time.monotonic() < deadline, "PostgreSQL listens and lets nobody in"
                time.sleep(0.1)
            # Whoever makes the databases is no superuser, as nobody is in Cloud SQL.
            maker = "CREATE ROLE maker LOGIN CREATEDB CREATEROLE PASSWORD :'password'"
            for command, given in (
                (["psql", "--username", "postgres", "--set", f"password={passwords['postgres']}"], maker),
                (["sh", str(REPOSITORY / "deploy" / "postgres" / "init.sh")], ""),
            ):
                made = subprocess.run(
                    command,
                    env={
                        **os.environ,
                        "PATH": f"{programs}:{os.environ['PATH']}",
                        "PGHOST": "127.0.0.1",
                        "PGPORT": f"{port}",
                        "PGPASSWORD": passwords["postgres"],
                        "POSTGRES_USER": "maker",
                        "DAGSTER_POSTGRES_PASSWORD": passwords["dagster"],
                        "MLFLOW_POSTGRES_PASSWORD": passwords["mlflow"],
                    },
                    input=given,
                    text=True,
                    capture_output=True,
                    timeout=60,
                    check=False,
                )
                assert made.returncode == 0, made.stderr
            yield PostgresServer(port, passwords, programs)


@dataclass(frozen=True)
class MlflowServer:
    """An MLflow that asks who one is, with the users that compose makes."""

    url: str
    passwords: Mapping[str, str]

    def environment(self, user: str) -> dict[str, str]:
        """The variables with which MLflow's client is that user."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.passwords[user],
        }


@contextlib.contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[MlflowServer]:
    """A server as compose starts it.

    Args:
        database: where runs, models and users are, as SQLAlchemy writes it.
        folder: where artifacts are.
    """
    port = free_port()
    server = MlflowServer(
        f"http://127.0.0.1:{port}",
        {name: f"{name} p/w:@ {'x' * 12}" for name in ("admin", "platform", "serving")},
    )
    config = (REPOSITORY / "deploy" / "mlflow" / "auth.ini").read_text(encoding="utf-8")
    auth = folder / "auth.ini"
    # configparser has a meaning for the percent signs of an escaped password.
    own = database.replace("%", "%%")
    auth.write_text(
        re.sub("(?m)^database_uri = .*$", lambda _: f"database_uri = {own}", config), encoding="utf-8"
    )
    command = [
        *(str(Path(sys.executable).parent / "mlflow"), "server", "--app-name", "basic-auth"),
        *("--host", "127.0.0.1", "--port", f"{port}", "--workers", "1", "--backend-store-uri", database),
        *(
            "--serve-artifacts",
            "--artifacts-destination",
            str(folder),
            "--allowed-hosts",
            f"127.0.0.1:{port}",
        ),
    ]
    environment = {
        **QUIET,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_AUTH_ADMIN_PASSWORD": server.passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",  # pragma: allowlist secret
    }
    with serving(command, port, environment):
        made = subprocess.run(
            [sys.executable, str(REPOSITORY / "deploy" / "mlflow" / "make_users.py")],
            env={
                **os.environ,
                **server.environment("admin"),
                "MLFLOW_PLATFORM_PASSWORD": server.passwords["platform"],
                "MLFLOW_SERVING_PASSWORD": server.passwords["serving"],
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        yield server


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
