"""The containers, started as people start them (`make compose-up`), in a Docker engine that runs.

`uv run pytest -m soak bike_assets_tests/integration/test_compose.py`. Where no registry of images can be reached,
`bike_assets_tests/containers/stand_in_images` makes images of their names first.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from bike_assets.settings import REPOSITORY
from bike_assets_tests.homes import SMALL_CITY, one_json

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.integration, pytest.mark.timeout(3_600)]

URL = "https://localhost:8443"
PLATFORM = ("postgres", "mlflow", "code-location", "dagster-webserver", "dagster-daemon")
ALL = (*PLATFORM, "serving-blue", "proxy", "prometheus")
HEALTHY_SECONDS = 300.0


@dataclass(frozen=True)
class Stack:
    """A project of compose in a folder of its own."""

    folder: Path
    command: list[str]

    def compose(self, *arguments: str, timeout: float = 900, check: bool = True) -> str:
        done = subprocess.run(
            [*self.command, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{arguments}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
        return done.stdout

    def containers(self, *services: str) -> list[str]:
        return self.compose("ps", "-q", *services).split()

    def wait_healthy(self, services: Sequence[str]) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS
        while True:
            states = {container: state_of(container) for container in self.containers(*services)}
            if len(states) >= len(services) and all(
                state["Running"] and state["Health"]["Status"] == "healthy" for state in states.values()
            ):
                return
            assert time.monotonic() < deadline, f"{services} after {HEALTHY_SECONDS:.0f} s: {states}"
            time.sleep(1)

    @cached_property
    def keys(self) -> dict[str, str]:
        """A key by role, without the limits of callers."""
        made = {}
        for role in ("reader", "admin"):
            limits = ("--predict-per-minute", "0", "--train-per-hour", "0")
            said = self.compose(
                "exec", "-T", "serving-blue",
                "bike-serving", "keys", "create", "--name", f"test {role}", "--role", role, *limits,
            )  # fmt: skip
            (made[role],) = re.findall(r"\bbike_\S+", said)
        time.sleep(2)  # until every container knows them
        return made

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """That of the proxy's own certificate authority."""
        authority = "/data/caddy/pki/authorities/local/root.crt"
        return ssl.create_default_context(cadata=self.compose("exec", "-T", "proxy", "cat", authority))

    def request(self, path: str, role: str = "reader", body: Any = None) -> urllib.request.Request:
        return urllib.request.Request(  # noqa: S310  ours
            URL + path,
            headers={"X-API-Key": self.keys[role], "Content-Type": "application/json"},
            data=None if body is None else json.dumps(body).encode(),
        )

    def ask(self, path: str, role: str = "reader", body: Any = None) -> Any:
        """What the service says through the proxy."""
        request = self.request(path, role, body)
        with urllib.request.urlopen(request, timeout=30, context=self.trust) as answer:  # noqa: S310
            return json.load(answer)


def state_of(container: str) -> dict[str, Any]:
    done = subprocess.run(
        ["docker", "inspect", container], capture_output=True, text=True, timeout=60, check=True
    )
    (found,) = json.loads(done.stdout)
    return {**found["State"], "RestartCount": found["RestartCount"], "Service": found["Config"]["Labels"][
        "com.docker.compose.service"
    ]}  # fmt: skip


@dataclass
class Load:
    """Someone who asks all the time, and writes down what failed and for how long nothing came."""

    asked: int = 0
    failures: list[str] = field(default_factory=list)
    silent_seconds: float = 0.0


@contextlib.contextmanager
def load(stack: Stack, path: str) -> Iterator[Load]:
    """Ask a path one time after the other, by four clients, until leaving."""
    request, trust, found, ended = stack.request(path), stack.trust, Load(), threading.Event()

    def client() -> None:
        last = time.monotonic()
        while not ended.wait(0.02):
            found.asked += 1
            try:
                with urllib.request.urlopen(request, timeout=15, context=trust) as answer:  # noqa: S310
                    answer.read()
                last = time.monotonic()
            except OSError as error:
                found.failures.append(f"{type(error).__name__}: {error}")
                found.silent_seconds = max(found.silent_seconds, time.monotonic() - last)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        yield found
    finally:
        ended.set()
        for each in clients:
            each.join()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack with a champion of the smallest city."""
    command = compose_command()
    folder = tmp_path_factory.mktemp("stack") / "bike"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    subprocess.run([str(folder / "deploy" / "make-env")], check=True, capture_output=True, timeout=30)
    settings = folder / ".env"
    profiles = settings.read_text(encoding="utf-8").replace("PROFILES=core\n", "PROFILES=core,monitoring\n")
    city = "".join(f"{name}={value}\n" for name, value in SMALL_CITY.items())
    settings.write_text(profiles + city, encoding="utf-8")
    started = Stack(folder, command)
    try:
        up = subprocess.run(
            ["make", "compose-up", f"COMPOSE={' '.join(command)}"],
            cwd=folder, capture_output=True, text=True, timeout=1_800, check=False,
        )  # fmt: skip
        assert up.returncode == 0, up.stderr[-4000:]
        started.wait_healthy((*PLATFORM, "proxy"))
        one_json(
            started.compose("exec", "-T", "code-location", "bike-assets", "demo", "--json", timeout=1_800)
        )
        started.wait_healthy(ALL)
        yield started
    finally:
        started.compose("--profile", "green", "down", "--volumes", "--timeout", "5", check=False)


def compose_command() -> list[str]:
    """`docker compose`, or the program that was before it. Skips where no engine runs."""
    for command in (["docker", "compose"], ["docker-compose"]):
        with contextlib.suppress(OSError):
            if (
                subprocess.run([*command, "version"], capture_output=True, timeout=60, check=False).returncode
                == 0
            ):
                engine = subprocess.run(["docker", "info"], capture_output=True, timeout=60, check=False)
                if engine.returncode == 0:
                    return command
    pytest.skip("no Docker engine with compose can be reached")


def first_forecast(stack: Stack) -> str:
    counter = stack.ask("/v1/counters")["counters"][0]["counter_id"]
    return f"/v1/counters/{counter}/forecast"


def test_the_stack_serves_the_champion_over_tls(stack: Stack) -> None:
    forecast = stack.ask(first_forecast(stack))
    assert len(forecast["forecasts"]) > 100
    assert len(stack.containers("serving-blue")) == 2


def test_no_container_is_root_or_may_write_outside_its_volumes(stack: Stack) -> None:
    for container in stack.containers(
        "mlflow", "code-location", "dagster-webserver", "dagster-daemon", "serving-blue"
    ):
        done = subprocess.run(
            ["docker", "exec", container, "sh", "-c", "id -u; touch /opt/x"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout.split() == ["10001"]
        assert "Read-only file system" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="kills processes of containers, which only root may")
@pytest.mark.parametrize("service", ALL)
def test_a_container_that_is_killed_comes_back_and_people_notice_nothing(stack: Stack, service: str) -> None:
    path = first_forecast(stack)
    before = stack.ask(path)
    container = stack.containers(service)[0]
    restarts = state_of(container)["RestartCount"]

    with load(stack, path) as asked:
        time.sleep(1)
        os.kill(state_of(container)["Pid"], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while state_of(container)["RestartCount"] == restarts:
            assert time.monotonic() < deadline, f"{service} was not started again"
            time.sleep(0.2)
        stack.wait_healthy(ALL)
        time.sleep(2)

    assert asked.asked > 50
    if service == "proxy":
        # Who is in front of everything is not there for as long as it takes to start.
        assert asked.silent_seconds < 10, asked
    else:
        assert asked.failures == [], f"{len(asked.failures)} of {asked.asked}"
    assert stack.ask(path) == before


def test_a_training_that_people_order_goes_through_all_of_it(stack: Stack) -> None:
    """The service asks Dagster's web server, the daemon starts the run, PostgreSQL and MLflow keep it."""
    run = stack.ask("/v1/train", "admin", {"reason": "whether it goes through"})
    deadline = time.monotonic() + 600
    while (state := stack.ask(f"/v1/runs/{run['run_id']}"))["status"] not in {
        "SUCCESS",
        "FAILURE",
        "CANCELED",
    }:
        assert time.monotonic() < deadline, state
        time.sleep(3)
    assert state["status"] == "SUCCESS", state


def test_a_release_beside_the_other_takes_over_and_gives_back_without_a_failed_request(stack: Stack) -> None:
    subprocess.run(["docker", "tag", "bike-serving:0.1.0", "bike-serving:0.1.1"], check=True, timeout=60)
    environment = {**os.environ, "COMPOSE": " ".join(stack.command)}

    def blue_green(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            ["deploy/blue-green", *arguments],
            cwd=stack.folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    with load(stack, first_forecast(stack)) as asked:
        assert "serving-green serves" in blue_green("deploy", "0.1.1")
        time.sleep(3)
        assert "serving-blue serves" in blue_green("switch")
        time.sleep(3)
        blue_green("end")
        time.sleep(3)
        # A release that there is no image of never takes a request.
        blue_green("deploy", "0.0.0", code=1)
    assert asked.asked > 100
    assert asked.failures == [], f"{len(asked.failures)} of {asked.asked}"


def test_prometheus_asks_both_containers_and_its_rules_are_quiet(stack: Stack) -> None:
    checked = stack.compose(
        "exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml"
    )
    assert "rules found" in checked

    def asked(question: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"http://localhost:9090/api/v1/{question}", timeout=10) as answer:
            data = json.load(answer)["data"]
            told: list[dict[str, Any]] = data["alerts"] if question == "alerts" else data["result"]
            return told

    deadline = time.monotonic() + 120
    found: list[dict[str, Any]] = []
    while len(found) != 2:
        assert time.monotonic() < deadline, "the service is not watched"
        time.sleep(2)
        with contextlib.suppress(OSError):
            found = asked("query?query=bike_serving_model_loaded%3D%3D1")
    assert [alert for alert in asked("alerts") if alert["state"] == "firing"] == []


def test_what_postgresql_keeps_is_saved_and_comes_back(stack: Stack) -> None:
    """The commands of docs/production.md, with a loss between them."""
    versions = summary(stack)
    page = (REPOSITORY / "docs" / "production.md").read_text(encoding="utf-8")
    backup, restore = page.partition("### Backup and restore")[2].split("```sh\n")[1:3]

    def run(block: str) -> None:
        commands = block.partition("```")[0]
        assert commands.count("docker compose") >= 2
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands.replace("docker compose", " ".join(stack.command))],
            cwd=stack.folder, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    run(backup)
    stack.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "mlflow", "-c",
                  "DROP TABLE registered_model_aliases; DELETE FROM metrics")  # fmt: skip
    with pytest.raises(OSError, match="50"):
        stack.ask("/v1/model_summary")
    run(restore)
    stack.wait_healthy(ALL)
    assert summary(stack) == versions


def summary(stack: Stack) -> Any:
    """What the service tells of models, which it asks MLflow for and gives up on after seconds: asked until it does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return stack.ask("/v1/model_summary")
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(1)
