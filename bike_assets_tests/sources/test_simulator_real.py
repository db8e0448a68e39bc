"""The simulated city behaves like the real one, by summary statistics. Skipped where the real exports are absent."""

from datetime import date

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from bike_assets.core.calendar import local_columns
from bike_assets.sources.archive import ArchiveSource
from bike_assets.sources.simulator import SimulatorSource
from bike_assets_tests.sources.test_archive_real import FOLDER

EXPORT = FOLDER / "comptage-velo-donnees-compteurs_2023-08_2024-02.parquet"
FIRST, LAST = date(2023, 8, 1), date(2024, 2, 25)
AUTUMN = date(2023, 10, 29)
SLOT = ["counter_id", "weekday", "local_hour"]

pytestmark = pytest.mark.skipif(
    not EXPORT.exists(), reason=f"no real exports in {FOLDER} (set BIKE_REAL_DATA to their folder)"
)


def final(counts: pl.DataFrame) -> pl.DataFrame:
    """The last published row of every counter and hour, on the wall clock."""
    rows = (
        counts.sort("published_until")
        .unique(["counter_id", "ts_utc"], keep="last")
        .drop_nulls("hourly_count")
    )
    return local_columns(rows).with_columns(weekday=pl.col("service_date").dt.weekday())


@pytest.fixture(scope="module")
def real() -> pl.DataFrame:
    return final(ArchiveSource([EXPORT]).read(FIRST, LAST).counts)


@pytest.fixture(scope="module")
def simulated() -> pl.DataFrame:
    return final(
        SimulatorSource(seed=7, counters=60, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    )


def levels(counts: pl.DataFrame) -> NDArray[np.float64]:
    """First decile, median and last decile of the counters' mean hourly counts."""
    means = (
        counts.group_by("counter_id")
        .agg(pl.col("hourly_count").mean(), pl.len())
        .filter(pl.col("len") > 1000)
    )
    return np.quantile(means["hourly_count"].to_numpy(), [0.1, 0.5, 0.9])


def week(counts: pl.DataFrame) -> NDArray[np.float64]:
    """The city's mean week, 168 hours, in units of its mean."""
    hours = (
        counts.group_by("weekday", "local_hour")
        .agg(pl.col("hourly_count").mean())
        .sort("weekday", "local_hour")
    )
    values = hours["hourly_count"].to_numpy()
    return np.asarray(values / values.mean())


def zero_runs(counts: pl.DataFrame) -> pl.DataFrame:
    """Hours of every run of zeros of a day or more."""
    runs = counts.sort("counter_id", "ts_utc").with_columns(
        run=(pl.col("hourly_count") != 0).cum_sum().over("counter_id")
    )
    zeros = runs.filter(pl.col("hourly_count") == 0)
    return zeros.group_by("counter_id", "run").len().filter(pl.col("len") >= 24)


def gaps(counts: pl.DataFrame) -> pl.Series:
    """Hours between two rows of a counter that lie more than a day apart."""
    apart = counts.sort("counter_id", "ts_utc").select(
        pl.col("ts_utc").diff().dt.total_hours().over("counter_id")
    )
    return apart.to_series().drop_nulls().filter(apart.to_series().drop_nulls() > 24)


def counter_years(counts: pl.DataFrame) -> float:
    span = counts.group_by("counter_id").agg(pl.col("ts_utc").max() - pl.col("ts_utc").min())
    return float(span["ts_utc"].dt.total_hours().sum() / 8766)


def scatter(counts: pl.DataFrame, low: float, high: float) -> float:
    """Median over counters and hours of the week of (variance - mean) / mean², eight weeks at a time."""
    blocks = (
        counts.filter(pl.col("hourly_count") > 0)
        .with_columns(block=pl.col("service_date").dt.epoch("d") // 56)
        .group_by(*SLOT, "block")
        .agg(mean=pl.col("hourly_count").mean(), variance=pl.col("hourly_count").var(), n=pl.len())
        .filter(pl.col("n") >= 6, pl.col("mean").is_between(low, high))
    )
    found = blocks.select(((pl.col("variance") - pl.col("mean")) / pl.col("mean") ** 2).median()).item()
    return float(found)


def test_levels_of_the_counters(real: pl.DataFrame, simulated: pl.DataFrame) -> None:
    assert levels(simulated) / levels(real) == pytest.approx(1, abs=0.4)


def test_the_week(real: pl.DataFrame, simulated: pl.DataFrame) -> None:
    """Two peaks on working days, one hump at the weekend, quiet nights."""
    ours, theirs = week(simulated), week(real)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95
    night = np.isin(np.arange(168) % 24, range(5))
    assert ours[night].sum() / theirs[night].sum() == pytest.approx(1, abs=0.35)


def test_the_share_of_zeros(real: pl.DataFrame, simulated: pl.DataFrame) -> None:
    shares = [float((counts["hourly_count"] == 0).mean()) for counts in (simulated, real)]  # type: ignore[arg-type]
    assert 0.3 < shares[0] / shares[1] < 2


@pytest.mark.parametrize(("low", "high"), [(5, 20), (20, 60), (60, 200), (200, 2000)])
def test_the_scatter_against_the_level(
    real: pl.DataFrame, simulated: pl.DataFrame, low: float, high: float
) -> None:
    assert 0.5 < scatter(simulated, low, high) / scatter(real, low, high) < 2.5


def test_outages_a_counter_and_year(real: pl.DataFrame, simulated: pl.DataFrame) -> None:
    ours, theirs = counter_years(simulated), counter_years(real)
    assert 0.4 < (zero_runs(simulated).height / ours) / (zero_runs(real).height / theirs) < 2.5
    assert 0.3 < (gaps(simulated).len() / ours) / (gaps(real).len() / theirs) < 3
    lasting = [float(np.median(zero_runs(counts)["len"].to_numpy())) for counts in (simulated, real)]
    assert 0.4 < lasting[0] / lasting[1] < 2.5


def test_the_autumn_hour_that_holds_two(real: pl.DataFrame, simulated: pl.DataFrame) -> None:
    for counts in (real, simulated):
        night = counts.filter(service_date=AUTUMN, local_hour=2)
        assert night["ts_utc"].dt.hour().unique().to_list() == [1], "the first of the two hours is nowhere"
        sundays = counts.filter(
            pl.col("weekday") == 7, pl.col("local_hour") == 2, pl.col("service_date") != AUTUMN
        )
        assert night["hourly_count"].mean() / sundays["hourly_count"].mean() > 1.3  # type: ignore[operator]
