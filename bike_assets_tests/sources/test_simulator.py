"""The synthetic city: reproducible, independent of the range asked for, and as awkward as the real one."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.calendar import hours_of_day, is_public_holiday, is_school_holiday, local_columns
from bike_assets.core.contracts import RAW_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.sources import SOURCE_NAMES, open_source
from bike_assets.sources.base import COUNTS_SCHEMA, REJECTED_SCHEMA
from bike_assets.sources.seeded import shock
from bike_assets.sources.simulator import Scenario, SimulatorSource

FIRST, LAST = date(2023, 1, 1), date(2024, 1, 31)


@pytest.fixture(scope="module")
def source() -> SimulatorSource:
    return SimulatorSource(first_day=FIRST, last_day=LAST)


@pytest.fixture(scope="module")
def counts(source: SimulatorSource) -> pl.DataFrame:
    return source.read(FIRST, LAST).counts


@pytest.fixture(scope="module")
def large_city() -> pl.DataFrame:
    return SimulatorSource(counters=40, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts


def _latest(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.sort("published_until").unique(["counter_id", "ts_utc"], keep="last")


def test_keeps_the_raw_contract(counts: pl.DataFrame) -> None:
    assert counts.schema == COUNTS_SCHEMA
    written = counts.with_columns(
        ingested_at=pl.lit(datetime(2024, 2, 1, tzinfo=UTC)), content_hash=pl.lit("0")
    )
    RAW_COUNTS.conform(written)
    assert (
        local_columns(counts.drop("service_date"))
        .get_column("service_date")
        .equals(counts.get_column("service_date"), check_names=False)
    )


def test_has_no_faults(source: SimulatorSource) -> None:
    batch = source.read(FIRST, FIRST)
    assert batch.faults == ()
    assert batch.rejected.schema == REJECTED_SCHEMA
    assert batch.rejected.is_empty()


def test_same_seed_same_city_other_seed_another(counts: pl.DataFrame) -> None:
    assert SimulatorSource(first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts.equals(counts)
    other = SimulatorSource(seed=8, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    assert not other.get_column("hourly_count").equals(counts.get_column("hourly_count"))


@pytest.mark.parametrize(
    "day", [date(2023, 1, 1), date(2023, 3, 26), date(2023, 6, 30), date(2023, 10, 29), date(2024, 1, 31)]
)
def test_a_day_is_the_same_in_every_range(counts: pl.DataFrame, day: date) -> None:
    """Reading day by day, from a later start, up to an earlier end: always the rows of the long read."""
    expected = counts.filter(pl.col("service_date") == day)
    alone = SimulatorSource(first_day=day, last_day=day).read(day, day).counts
    assert expected.height >= 23 * 11
    assert alone.equals(expected)


def test_daily_reads_add_up_to_the_long_read(source: SimulatorSource, counts: pl.DataFrame) -> None:
    days = [date(2023, 10, 20) + timedelta(days=i) for i in range(20)]
    daily = pl.concat(source.read(day, day).counts for day in days)
    together = counts.filter(pl.col("service_date").is_between(days[0], days[-1]))
    assert daily.sort(counts.columns).equals(together.sort(counts.columns))


def test_more_counters_leave_the_others_as_they_are(counts: pl.DataFrame) -> None:
    day = date(2023, 5, 10)
    more = SimulatorSource(counters=20, first_day=FIRST, last_day=LAST).read(day, day).counts
    few = counts.filter(pl.col("service_date") == day)
    assert more.filter(pl.col("counter_id").is_in(few.get_column("counter_id").unique().to_list())).equals(
        few
    )


def test_reads_nothing_outside_its_span(source: SimulatorSource) -> None:
    assert source.span() == (FIRST, LAST)
    outside = source.read(LAST + timedelta(days=1), LAST + timedelta(days=9)).counts
    assert outside.is_empty()
    assert outside.schema == COUNTS_SCHEMA


def test_levels_are_those_of_a_city(counts: pl.DataFrame) -> None:
    levels = counts.group_by("counter_id").agg(
        pl.col("hourly_count").mean().alias("mean"), pl.col("hourly_count").quantile(0.99).alias("busy")
    )
    assert levels.get_column("mean").is_between(5, 300).all()
    assert levels.get_column("busy").max() > 250
    assert counts.get_column("latitude").is_between(48.81, 48.91).all()
    assert counts.get_column("longitude").is_between(2.25, 2.42).all()
    assert (counts.get_column("hourly_count") >= 0).all()


def test_counters_share_sites_and_run_in_two_directions(counts: pl.DataFrame) -> None:
    sites = counts.group_by("site_id").agg(
        pl.col("counter_id").str.slice(0, 15).n_unique().alias("counters"),
        pl.col("counter_name").str.split(" ").list.last().n_unique().alias("directions"),
    )
    assert sites.height == 6
    assert (sites.get_column("directions") == 2).all()


def test_autumn_hour_is_merged_into_the_second(counts: pl.DataFrame) -> None:
    """As on the portal: no row at 00:00 UTC, and 01:00 UTC holds both hours."""
    night = counts.filter(pl.col("service_date") == date(2023, 10, 29))
    hours = night.get_column("ts_utc").dt.strftime("%dT%H")
    assert "29T00" not in hours.to_list()
    assert hours.n_unique() == 24
    ratios = []
    for seed in range(6):
        city = SimulatorSource(seed=seed, first_day=FIRST, last_day=LAST)
        rows = local_columns(city.read(date(2023, 10, 8), date(2023, 10, 29)).counts)
        at_two = rows.filter((pl.col("local_hour") == 2) & (pl.col("service_date").dt.weekday() == 7))
        merged = pl.col("service_date") == date(2023, 10, 29)
        sums = at_two.select(
            pl.col("hourly_count").filter(merged).sum() * 3 / pl.col("hourly_count").filter(~merged).sum()
        )
        ratios.append(float(sums.item()))
    assert 1.5 < np.mean(ratios) < 2.6


def test_spring_day_has_23_hours(counts: pl.DataFrame) -> None:
    day = counts.filter(pl.col("service_date") == date(2023, 3, 26))
    assert day.get_column("ts_utc").unique().sort().to_list() == hours_of_day(date(2023, 3, 26))
    assert len(hours_of_day(date(2023, 3, 26))) == 23


def test_late_corrections_publish_an_hour_twice(counts: pl.DataFrame) -> None:
    twice = counts.filter(pl.struct("counter_id", "ts_utc").is_duplicated()).sort(
        "counter_id", "ts_utc", "published_until"
    )
    early, late = twice.gather_every(2), twice.gather_every(2, offset=1)
    assert early.height > 50
    assert early.select("counter_id", "ts_utc").equals(late.select("counter_id", "ts_utc"))
    assert (early.get_column("hourly_count") == 0).all()
    assert late.get_column("hourly_count").mean() > 3
    assert (late.get_column("published_until") > early.get_column("published_until")).all()
    assert late.get_column("source_file").str.ends_with("-correction").all()


def test_known_on_withholds_later_publications(counts: pl.DataFrame) -> None:
    corrections = counts.filter(pl.col("source_file").str.ends_with("-correction"))
    day = corrections.get_column("service_date")[0]
    before = SimulatorSource(first_day=FIRST, last_day=LAST, known_on=day).read(day, day).counts
    after = SimulatorSource(first_day=FIRST, last_day=LAST, known_on=day + timedelta(days=7)).read(day, day)
    assert before.height < after.counts.height
    assert after.counts.equals(counts.filter(pl.col("service_date") == day))


def test_publication_ends_with_the_day(counts: pl.DataFrame) -> None:
    plain = counts.filter(~pl.col("source_file").str.ends_with("-correction"))
    ends = plain.group_by("service_date").agg(pl.col("published_until").unique()).explode("published_until")
    expected = {day: hours_of_day(day)[-1] for day in plain.get_column("service_date").unique()}
    assert dict(ends.iter_rows()) == expected


def test_outages_are_zero_runs_and_missing_rows(large_city: pl.DataFrame) -> None:
    latest = _latest(large_city).sort("counter_id", "ts_utc")
    runs = latest.with_columns(
        run=((pl.col("hourly_count") == 0) != (pl.col("hourly_count") == 0).shift(1))
        .fill_null(True)
        .cum_sum()
        .over("counter_id")
    )
    long_zeros = (
        runs.filter(pl.col("hourly_count") == 0)
        .group_by("counter_id", "run")
        .agg(pl.len())
        .filter(pl.col("len") >= 24)
    )
    gaps = latest.select(pl.col("ts_utc").diff().over("counter_id").alias("gap")).filter(
        pl.col("gap") >= timedelta(hours=24)
    )
    lost = long_zeros.get_column("len").sum() / latest.height
    assert long_zeros.height > 10
    assert gaps.height > 10
    assert 0.002 < lost < 0.03


def test_outages_do_not_end_with_the_month(large_city: pl.DataFrame) -> None:
    """Draws are made month by month, which must not show."""
    gaps = large_city.sort("counter_id", "ts_utc").select(
        pl.col("ts_utc").alias("end"), pl.col("ts_utc").shift(1).over("counter_id").alias("start")
    )
    crossing = gaps.filter(
        (pl.col("end") - pl.col("start") > timedelta(hours=5))
        & (pl.col("end").dt.month() != pl.col("start").dt.month())
        & (pl.col("end") - pl.col("end").dt.truncate("1mo") > timedelta(hours=3))
    )
    assert not crossing.is_empty()


def test_the_shock_of_a_day_does_not_depend_on_the_month_it_is_drawn_with() -> None:
    days = [date(2023, 3, 1) + timedelta(days=i) for i in range(60)]
    whole = shock(7, 1, 0, days, memory=0.7, spread=0.2)
    for start in (1, 17, 31, 59):
        assert np.array_equal(shock(7, 1, 0, days[start:], memory=0.7, spread=0.2), whole[start:])
    years = shock(7, 1, 0, [date(2000, 1, 1) + timedelta(days=i) for i in range(7000)], 0.7, 0.2)
    assert 0.18 < years.std() < 0.22
    assert 0.65 < np.corrcoef(years[1:], years[:-1])[0, 1] < 0.75


def test_spikes_exist(large_city: pl.DataFrame) -> None:
    assert large_city.get_column("hourly_count").max() in (5349, 8190)


def test_one_counter_is_replaced_and_one_renamed_each_spring(counts: pl.DataFrame) -> None:
    lives = counts.group_by("counter_id").agg(
        pl.col("service_date").min().alias("first"),
        pl.col("service_date").max().alias("last"),
        pl.col("counter_name").n_unique().alias("names"),
    )
    vanished = lives.filter(pl.col("last") < LAST - timedelta(days=30))
    new = lives.filter(pl.col("first") > FIRST + timedelta(days=30))
    assert vanished.height == 1
    assert new.height == 1
    assert vanished.get_column("last")[0] < new.get_column("first")[0]
    assert lives.filter(pl.col("names") > 1).height == 1


def test_calendar_is_learnable(counts: pl.DataFrame) -> None:
    """Public and school holidays move the city by more than the noise of its days."""
    days = (
        _latest(counts)
        .group_by("service_date")
        .agg(pl.col("hourly_count").sum())
        .with_columns(weekday=pl.col("service_date").dt.weekday())
        .filter(pl.col("weekday") <= 5)
    )
    public = pl.Series([is_public_holiday(day) for day in days.get_column("service_date")])
    school = pl.Series([is_school_holiday(day) for day in days.get_column("service_date")])
    usual = days.filter(~public & ~school).get_column("hourly_count").mean()
    assert days.filter(public).get_column("hourly_count").mean() < 0.85 * usual
    assert days.filter(school & ~public).get_column("hourly_count").mean() < 0.97 * usual


def test_yesterdays_level_beats_the_mean_of_four_weeks(counts: pl.DataFrame) -> None:
    """The shock of the city persists: scaling the baseline by how wrong it was yesterday must help."""
    days = _latest(counts).group_by("service_date").agg(pl.col("hourly_count").sum()).sort("service_date")
    total = days.get_column("hourly_count").to_numpy()
    mean4 = np.mean([total[28 - 7 * k : len(total) - 7 * k] for k in range(1, 5)], axis=0)
    truth = total[28:]
    scaled = mean4[1:] * (truth[:-1] / mean4[:-1]) ** 0.5
    assert np.abs(scaled - truth[1:]).mean() < 0.93 * np.abs(mean4[1:] - truth[1:]).mean()


START = date(2023, 9, 15)


def _scenario_totals(scenario: Scenario, counts: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Plain and disturbed sums by counter, after the start; before it, both must be equal row by row."""
    source = SimulatorSource(first_day=FIRST, last_day=LAST, scenario=scenario, scenario_start=START)
    disturbed = source.read(FIRST, LAST).counts
    before = pl.col("service_date") < START
    assert disturbed.filter(before).equals(counts.filter(before))
    sums = pl.col("hourly_count").sum()
    after = pl.col("service_date") >= START
    return (
        counts.filter(after).group_by("counter_id").agg(sums).sort("counter_id"),
        disturbed.filter(after).group_by("counter_id").agg(sums).sort("counter_id"),
    )


@pytest.mark.parametrize(
    ("scenario", "first_counter", "others"),
    [
        (Scenario.HALVED_COUNTER, (0.47, 0.53), (1, 1)),
        (Scenario.DEAD_COUNTER, (0, 0), (1, 1)),
        (Scenario.CITY_SHOCK, (0.58, 0.62), (0.55, 0.70)),
        (Scenario.TREND, (1.25, 1.75), (1.1, 1.75)),
    ],
)
def test_scenarios(
    counts: pl.DataFrame,
    scenario: Scenario,
    first_counter: tuple[float, float],
    others: tuple[float, float],
) -> None:
    plain, disturbed = _scenario_totals(scenario, counts)
    ratio = (disturbed.get_column("hourly_count") / plain.get_column("hourly_count")).to_list()
    assert first_counter[0] <= ratio[0] <= first_counter[1]
    assert all(others[0] <= value <= others[1] for value in ratio[1:])


def after(scenario: Scenario, days: int = 14) -> pl.DataFrame:
    source = SimulatorSource(first_day=FIRST, last_day=LAST, scenario=scenario, scenario_start=START)
    return source.read(START - timedelta(days=days), START + timedelta(days=days)).counts


def test_a_stuck_counter_repeats_one_count(counts: pl.DataFrame) -> None:
    plain, disturbed = _scenario_totals(Scenario.STUCK_COUNTER, counts)
    assert disturbed[1:].equals(plain[1:])
    rows = after(Scenario.STUCK_COUNTER).filter(pl.col("service_date") >= START)
    stuck = rows.filter(pl.col("counter_id") == plain["counter_id"][0])["hourly_count"]
    assert stuck.filter(~stuck.is_in([0.0, 512.0, 5349.0, 8190.0])).n_unique() == 1


def test_a_strike_is_five_days_on_which_more_ride_to_work(counts: pl.DataFrame) -> None:
    _scenario_totals(Scenario.STRIKE, counts)
    day = pl.col("service_date")
    daily = after(Scenario.STRIKE).group_by(day).agg(pl.col("hourly_count").sum()).sort(day)
    plain = (
        counts.filter(day.is_in(daily["service_date"].implode()))
        .group_by(day)
        .agg(plain=pl.col("hourly_count").sum())
    )
    ratio = daily.join(plain, on="service_date").with_columns(ratio=pl.col("hourly_count") / pl.col("plain"))
    strike = day.is_between(START, START + timedelta(days=4)) & (day.dt.weekday() < 6)
    assert ratio.filter(strike)["ratio"].is_between(1.6, 1.9).all()
    assert (ratio.filter(~strike)["ratio"] == 1).all()


def test_a_late_correction_is_zeros_first_and_the_counts_a_week_later(counts: pl.DataFrame) -> None:
    rows = after(Scenario.LATE_CORRECTION).filter(pl.col("service_date") >= START)
    first = rows["counter_id"].min()
    late = rows.filter(pl.col("counter_id") == first).sort("ts_utc", "published_until")
    by_hour = late.group_by("ts_utc", maintain_order=True).agg("hourly_count", "published_until")
    assert (by_hour["hourly_count"].list.len() == 2).all()
    assert (by_hour["hourly_count"].list.first() == 0).all()
    truth = counts.filter(pl.col("counter_id") == first).sort("published_until").unique("ts_utc", keep="last")
    corrected = late.unique("ts_utc", keep="last").join(truth, on="ts_utc")
    assert (corrected["hourly_count"] == corrected["hourly_count_right"]).all()
    apart = by_hour.select(pl.col("published_until").list.last() - pl.col("published_until").list.first())
    assert apart.to_series().dt.total_days().is_between(6, 7).all()


def test_a_schema_change_loses_columns_and_no_counts(counts: pl.DataFrame) -> None:
    rows = after(Scenario.SCHEMA_CHANGE)
    lost = ["site_id", "site_name", "installation_date"]
    begun = rows.filter(pl.col("service_date") >= START)
    assert all(begun[name].null_count() == begun.height for name in lost)
    assert all(rows.filter(pl.col("service_date") < START)[name].null_count() == 0 for name in lost)
    key = ["counter_id", "ts_utc", "published_until", "hourly_count"]
    assert begun.select(key).equals(
        counts.filter(pl.col("service_date").is_between(START, begun["service_date"].max())).select(key)
    )


def test_what_the_simulator_broke_is_what_its_faults_say(counts: pl.DataFrame) -> None:
    faults = SimulatorSource(first_day=FIRST, last_day=LAST).faults(FIRST, LAST)
    key = ["counter_id", "ts_utc"]
    final = counts.sort("published_until").unique(key, keep="last")
    assert set(faults["fault"]) >= {"zero", "silent"}
    zero = faults.filter(fault="zero").join(final, on=key)
    assert zero.height > 0
    assert (zero["hourly_count"] == 0).all()
    assert (
        faults.filter(pl.col("fault").is_in(["silent", "removed"])).join(final, on=key, how="semi").is_empty()
    )


def test_new_counter_scenario(counts: pl.DataFrame) -> None:
    plain, disturbed = _scenario_totals(Scenario.NEW_COUNTER, counts)
    added = set(disturbed.get_column("counter_id")) - set(plain.get_column("counter_id"))
    assert len(added) == 1
    assert disturbed.filter(~pl.col("counter_id").is_in(list(added))).equals(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counters": 0}, "counters is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"first_day": date(2024, 1, 2), "last_day": date(2024, 1, 1)}, "2024-01-02 is after"),
        ({"scenario": Scenario.TREND}, "belong together"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PermanentError, match=message) as caught:
        SimulatorSource(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_open_source_knows_its_names() -> None:
    assert SOURCE_NAMES == ("simulator", "archive", "paris")
    source = open_source("simulator", seed=3, scenario="trend", scenario_start=START)
    assert source == SimulatorSource(seed=3, scenario=Scenario.TREND, scenario_start=START)
    with pytest.raises(PermanentError, match="simulator, archive"):
        open_source("atlantis")
    with pytest.raises(PermanentError, match="halved_counter, dead_counter"):
        open_source("simulator", scenario="flood", scenario_start=START)
