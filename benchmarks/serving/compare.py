"""Ours beside `mlflow models serve`, BentoML and plain FastAPI: the same model, the same machine, the same run.

    python benchmarks/serving/compare.py [--seconds 8] [--home DIR]

Each server is one process with wrk beside it. Ours is asked as users ask it, by counter and hour, with an API key and
a rate limit that is counted: it has computed the coming week when it loaded the champion. The others are asked what
they can answer, to score a row of features of that same model, and return one number without interval. A constant that
uvicorn sends shows what the machine itself gives, its tail too. Needs wrk, and uv to make BentoML's environment
(`bentoml` cannot live with our dependencies). The claims are at 16 connections:
6,000 requests/s for one forecast with 99 % under 5 ms, and 200,000 forecasts/s in requests for all counters.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import polars as pl
from city import COUNTERS, City, Registry, make_city
from load import Load, free_port, processor_seconds, server, service, wrk

from bike_assets.core.correction import matrix
from bike_assets.core.features import FEATURE_COLUMNS

PEERS = Path(__file__).parent / "peers"
BENTOML = ["--with", "bentoml==1.4.39", "--with", "catboost", "--with", "numpy"]


@dataclass(frozen=True)
class Contestant:
    """A running server and its two questions: one forecast, and one hour at every counter."""

    name: str
    url: str
    one: Any
    all: Any
    pid: int
    headers: Mapping[str, str] = field(default_factory=dict)


def feature_rows(city: City) -> list[list[float]]:
    """The features of 08:00 of the first day at every counter, as the model takes them."""
    features = pl.read_parquet(city.home / "features.parquet")
    morning = features.group_by("counter_id", maintain_order=True).agg(pl.all().get(8))
    # JSON has no NaN: a model is as fast with a zero.
    rows: list[list[float]] = matrix(morning.fill_null(0).select(features.columns)).astype(float).tolist()
    return rows


@contextmanager
def ours(city: City) -> Iterator[Contestant]:
    """bike-serving."""
    with tempfile.TemporaryDirectory() as state, ExitStack() as stack:
        registry = Registry(city)
        stack.callback(registry.close)
        running = stack.enter_context(service(city, registry.url, Path(state)))
        hour = city.hours[8]
        yield Contestant(
            "bike-serving",
            f"{running.url}/predict",
            {"counter_ids": city.counter_ids[:1], "target_hours": [hour]},
            {"counter_ids": city.counter_ids, "target_hours": [hour]},
            running.pid,
            running.headers,
        )


@contextmanager
def constant(city: City) -> Iterator[Contestant]:
    """uvicorn with uvloop and httptools, and an application that does nothing."""
    port, hour = free_port(), city.hours[8]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(PEERS), "constant:app"]
    command += ["--port", str(port), "--no-access-log", "--lifespan", "off"]
    url = f"http://127.0.0.1:{port}"
    with server(command, url, {}) as started:
        one = {"counter_ids": city.counter_ids[:1], "target_hours": [hour]}
        every = {"counter_ids": city.counter_ids, "target_hours": [hour]}
        yield Contestant("a constant", url, one, every, started.pid)


@contextmanager
def plain_fastapi(city: City) -> Iterator[Contestant]:
    """FastAPI, pydantic, uvicorn with uvloop and httptools."""
    port, rows = free_port(), feature_rows(city)
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(PEERS), "plain_fastapi:app"]
    command += ["--port", str(port), "--no-access-log"]
    with server(command, f"http://127.0.0.1:{port}/docs", model_file(city)) as started:
        url = f"http://127.0.0.1:{port}/predict"
        yield Contestant("plain FastAPI", url, {"rows": rows[:1]}, {"rows": rows}, started.pid)


@contextmanager
def bentoml(city: City) -> Iterator[Contestant]:
    """BentoML with one worker, in an environment of its own."""
    port, rows = free_port(), feature_rows(city)
    command = ["uv", "run", "--no-project", "--isolated", *BENTOML, "bentoml", "serve"]
    command += ["--working-dir", str(PEERS), "bento:Forecasts", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, f"http://127.0.0.1:{port}/livez", model_file(city)) as started:
        url = f"http://127.0.0.1:{port}/predict"
        yield Contestant("BentoML", url, {"rows": rows[:1]}, {"rows": rows}, started.pid)


@contextmanager
def mlflow(city: City) -> Iterator[Contestant]:
    """`mlflow models serve` with MLflow's CatBoost flavour."""
    import mlflow.catboost
    import numpy as np
    from catboost import CatBoostRegressor

    port, rows = free_port(), feature_rows(city)
    with tempfile.TemporaryDirectory() as folder:
        model = CatBoostRegressor().load_model(model_file(city)["MODEL"])
        columns = list(FEATURE_COLUMNS)
        signature = mlflow.models.infer_signature(
            pl.DataFrame(np.array(rows), schema=columns, orient="row").to_pandas(), np.zeros(1)
        )
        mlflow.catboost.save_model(
            model, f"{folder}/model", signature=signature, pip_requirements=["catboost"]
        )
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"{folder}/model"]
        command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
        # It starts uvicorn through a shell, by name.
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with server(command, f"http://127.0.0.1:{port}/ping", path) as started:
            yield Contestant(
                "mlflow models serve",
                f"http://127.0.0.1:{port}/invocations",
                {"dataframe_split": {"columns": columns, "data": rows[:1]}},
                {"dataframe_split": {"columns": columns, "data": rows}},
                started.pid,
            )


def model_file(city: City) -> dict[str, str]:
    """Where the champion's model is, as an environment variable."""
    return {"MODEL": str(city.home / "bundles" / city.bundle_ids[0] / "model.cbm")}


def measure(contestant: Contestant, seconds: float) -> dict[str, Load]:
    """One forecast over one connection and over sixteen, and all counters over sixteen.

    Processor time a request is told beside the rate: on a busy machine only the first says something.
    """
    found = {}
    for name, body, connections in (
        ("one, c=1", contestant.one, 1),
        ("one, c=16", contestant.one, 16),
        ("all, c=16", contestant.all, 16),
    ):
        httpx.post(contestant.url, json=body, headers=contestant.headers, timeout=30).raise_for_status()
        wrk(contestant.url, body, connections, 1, contestant.headers)
        before = processor_seconds(contestant.pid)
        load = wrk(contestant.url, body, connections, seconds, contestant.headers)
        used = (processor_seconds(contestant.pid) - before) / max(load.requests, 1)
        found[name] = replace(load, processor_ms=used * 1000)
        show(contestant.name, name, found[name])
    return found


def main() -> None:
    """Measure, print the table, exit with 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--home", type=Path, help="keeps the city for the next run")
    parser.add_argument("--only", default="", help="names of contestants to leave out none but these")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        city = make_city(arguments.home or Path(temporary))
        for start in (ours, constant, plain_fastapi, bentoml, mlflow):
            if arguments.only and start.__name__ not in arguments.only.split(","):
                continue
            with start(city) as contestant:
                results[contestant.name] = measure(contestant, arguments.seconds)
    best = results["bike-serving"]
    print("\ntimes as many requests/s, and times as many for the same processor time")
    for name, found in results.items():
        ratios = [
            f"{case} {best[case].rate / load.rate:6.1f} {load.processor_ms / best[case].processor_ms:6.1f}"
            for case, load in found.items()
        ]
        print(f"  {name:20} {'   '.join(ratios)}")
    one, every = best["one, c=16"], best["all, c=16"]
    claims = {
        "6,000 requests/s": one.rate >= 6000,
        "99 % under 5 ms": one.p99 < 5,
        "200,000 forecasts/s": every.rate * COUNTERS >= 200_000,
        "no request failed": not any(load.failed for load in best.values()),
    }
    if broken := [claim for claim, holds in claims.items() if not holds]:
        sys.exit(f"does not hold: {', '.join(broken)}")


def show(name: str, case: str, load: Load) -> None:
    """Print one measurement."""
    forecasts = load.rate * (COUNTERS if case.startswith("all") else 1)
    print(
        f"{name:20} {case:10} {load.rate:7,.0f} requests/s {forecasts:9,.0f} forecasts/s  p50 {load.p50:7.2f} ms  "
        f"p99 {load.p99:7.2f} ms  processor {load.processor_ms:6.3f} ms/request  failed {load.failed}",
        flush=True,
    )


if __name__ == "__main__":
    main()
