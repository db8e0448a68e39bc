"""Servers and load for the serving benchmarks.

Belongs here: starting a server on a port of its own, asking it with wrk, reading what wrk prints. Does not belong here:
which servers and how much load.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from city import MODEL, City

QUIET = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "BENTOML_DO_NOT_TRACK": "True"}
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Load:
    """What wrk measured: requests a second, milliseconds, failed or refused requests; the server's processor time."""

    requests: int
    rate: float
    p50: float
    p99: float
    failed: int
    processor_ms: float = 0.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(
    command: Sequence[str], url: str, env: Mapping[str, str], seconds: float = 300
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at `url` with something else than a server error; killed with its children in the end."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **QUIET, **env},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + seconds
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"{' '.join(command)} does not answer:\n{log.read().decode()[-3000:]}")
                time.sleep(0.02)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def processor_seconds(pid: int) -> float:
    """What a process and its children have used of the processors."""
    parent = psutil.Process(pid)
    return sum(
        process.cpu_times().user + process.cpu_times().system
        for process in (parent, *parent.children(recursive=True))
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Service:
    """Ours, running and with a champion: where it listens and the headers of a reader."""

    url: str
    headers: dict[str, str]
    pid: int

    def client(self) -> httpx.Client:
        """Asks as a reader."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=30, trust_env=False)

    @property
    def memory(self) -> float:
        """Bytes that all its processes hold, the one that loads champions too; what they share is counted once."""
        parent = psutil.Process(self.pid)
        found = 0.0
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found += process.memory_full_info().pss
        return found


@contextmanager
def service(city: City, registry_url: str, state: Path, **settings: str) -> Iterator[Service]:
    """bike-serving for a city, with a limit on requests that is counted and never reached."""
    port = free_port()
    env = {
        "BIKE_SERVING_HOME": str(city.home),
        "BIKE_SERVING_STATE_DIR": str(state),
        "BIKE_SERVING_MODEL_NAME": MODEL,
        "BIKE_SERVING_MLFLOW_URL": registry_url,
        "BIKE_SERVING_PREDICT_PER_MINUTE": "1000000",
        **{f"BIKE_SERVING_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "bike_serving", "--port", str(port), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    with server(command, f"{url}/ready", env) as process:
        yield Service(url, reader(state), process.pid)


def reader(state: Path) -> dict[str, str]:
    """The headers of a caller with the first reader's key, which a local service makes at its start."""
    keys = sorted(state.glob("reader.key"))
    return {"x-api-key": keys[0].read_text().strip()} if keys else {}


def wrk(
    url: str, body: Any, connections: int, seconds: float, headers: Mapping[str, str] | None = None
) -> Load:
    """Post a JSON body again and again over some connections.

    Raises:
        SystemExit: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing; install it (apt-get install wrk)")
    all_headers = {"content-type": "application/json", **(headers or {})}
    lines = ['wrk.method = "POST"', f"wrk.body = {lua(json.dumps(body))}"]
    lines += [f"wrk.headers[ {lua(name)} ] = {lua(value)}" for name, value in all_headers.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join(lines))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "--latency"]
        ran = subprocess.run([*command, "-s", script.name, url], capture_output=True, text=True, check=True)
    return _read(ran.stdout)


def lua(text: str) -> str:
    """A text as a Lua string."""
    return f"[==[{text}]==]"


def _read(printed: str) -> Load:
    def found(pattern: str) -> list[tuple[str, ...]]:
        return [match.groups() for match in re.finditer(pattern, printed, re.MULTILINE)]

    percentiles = {
        share: float(value) * _UNITS[unit] for share, value, unit in found(r"(50|99)%\s+([\d.]+)(\w+)")
    }
    failed = sum(int(number) for (number,) in found(r"Non-2xx or 3xx responses: (\d+)"))
    failed += sum(
        int(number)
        for line in found(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)")
        for number in line
    )
    return Load(
        requests=int(found(r"(\d+) requests in")[0][0]),
        rate=float(found(r"Requests/sec:\s+([\d.]+)")[0][0]),
        p50=percentiles["50"],
        p99=percentiles["99"],
        failed=failed,
    )


class Paced:
    """Questions at a fixed rate from threads of this process, each answer checked.

    A time is counted from when the question was due, so that a server that stalls is not spared the questions that
    would have come meanwhile (Tene 2013, "coordinated omission").
    """

    def __init__(
        self, service: Service, body: Any, check: Callable[[bytes], str | None], threads: int = 8
    ) -> None:
        """What to ask, and what says why an answer is wrong (None: it is right)."""
        self._address = service.url.removeprefix("http://")
        self._headers = {"content-type": "application/json", **service.headers}
        self._body, self._check, self._threads = json.dumps(body), check, threads
        self.faults: list[str] = []

    def run(self, rate: float, until: Callable[[float], bool]) -> list[float]:
        """Ask until `until` (seconds since the start) says stop; sorted seconds of all answers."""
        took: list[list[float]] = [[] for _ in range(self._threads)]
        began = time.perf_counter()

        def ask(mine: list[float], first: float) -> None:
            connection = http.client.HTTPConnection(self._address, timeout=30)
            due = began + first
            while not until(due - began):
                time.sleep(max(0.0, due - time.perf_counter()))
                try:
                    connection.request("POST", "/predict", self._body, self._headers)
                    answer = connection.getresponse()
                    content = answer.read()
                    fault = (
                        self._check(content)
                        if answer.status == 200
                        else f"{answer.status}: {content[:200]!r}"
                    )
                except (OSError, http.client.HTTPException) as error:
                    fault = repr(error)
                    connection.close()
                mine.append(time.perf_counter() - due)
                if fault:
                    self.faults.append(fault)
                due += self._threads / rate

        threads = [
            threading.Thread(target=ask, args=(mine, number / rate)) for number, mine in enumerate(took)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(seconds for mine in took for seconds in mine)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values; milliseconds of seconds."""
    return ordered[int(share * (len(ordered) - 1))] * 1000
