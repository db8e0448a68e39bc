"""Counter health on simulated faults with truth: dead always found, halved nine times in ten, the healthy left alone.

The many seeds are `benchmarks/counter_health.py`'s, whose code this runs.
"""

import importlib
from types import ModuleType

import polars as pl
import pytest

from bike_assets.settings import REPOSITORY


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        return importlib.import_module("counter_health")


@pytest.fixture(scope="module")
def results(benchmark: ModuleType) -> tuple[pl.DataFrame, int, int]:
    """Faults with the day they were found on, alarmed healthy counter-weeks, all healthy counter-weeks."""
    found, alarmed, healthy = [], 0, 0
    for seed in (101, 102):
        counts, broken = benchmark.city(seed, 24)
        result, health = benchmark.trial(counts, benchmark.FIRST, benchmark.LAST, seed)
        wrong, right = benchmark.false_alarms(health, broken)
        found.append(result)
        alarmed, healthy = alarmed + wrong, healthy + right
    return pl.concat(found), alarmed, healthy


@pytest.mark.parametrize(
    ("fault", "share"),
    [("dead (x0)", 1.0), ("stuck", 1.0), ("x0.3", 0.98), ("halved (x0.5)", 0.9), ("doubled (x2)", 0.9)],
)
def test_faults_are_found_within_seven_days_in_every_season(
    results: tuple[pl.DataFrame, int, int], fault: str, share: float
) -> None:
    of_kind = results[0].filter(pl.col("fault") == fault)

    assert of_kind.height >= 40
    assert of_kind["start"].dt.quarter().n_unique() == 4
    assert of_kind["day"].is_not_null().mean() >= share  # type: ignore[operator]


def test_at_most_one_healthy_counter_week_in_a_hundred_is_alarmed(
    results: tuple[pl.DataFrame, int, int],
) -> None:
    _, alarmed, healthy = results

    assert healthy > 3000
    assert alarmed / healthy <= 0.01
