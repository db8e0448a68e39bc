"""The live source against a portal that speaks the real protocol: what arrives, what is asked, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import days_between, hours_of_day
from bike_assets.core.errors import PermanentError, TransientError
from bike_assets.settings import REPOSITORY
from bike_assets.sources.base import COUNTS_SCHEMA
from bike_assets.sources.opendatasoft import Dataset
from bike_assets.sources.paris import DATASET, ParisSource
from bike_assets.sources.polite_http import Patience, PoliteClient
from bike_assets_tests.exports import api_frame
from bike_assets_tests.fakes.opendatasoft import EVERY_FAULT, FakePortal
from bike_assets_tests.fakes.service import Faults
from bike_assets_tests.tables import day_rows

FIRST, LAST = date(2024, 9, 12), date(2024, 11, 20)
NOW = datetime(2024, 11, 21, 5, tzinfo=UTC)
QUICK = Patience(attempts=4, first_wait=0.0, read_seconds=5.0)


def city(first: date = FIRST, last: date = LAST) -> pl.DataFrame:
    """Two counters of a few months with both clock changes' kinds of day, as `COUNTS_SCHEMA`."""
    return pl.concat(
        day_rows(day, counter, lambda hour: None if hour == 5 else float(hour))
        for day in days_between(first, last)
        for counter in ("100003096-353242251", "c2")
    )


CITY = city()


@pytest.fixture
def portal() -> Iterator[FakePortal]:
    with FakePortal(api_frame(CITY)) as portal:
        yield portal


@pytest.fixture
def slept() -> list[float]:
    return []


Open = Callable[..., ParisSource]


@pytest.fixture
def open_source(portal: FakePortal, tmp_path: Path, slept: list[float]) -> Open:
    def opened(dataset: str = DATASET, key: str = "", patience: Patience = QUICK) -> ParisSource:
        headers = {"Authorization": f"Apikey {key}"} if key else {}
        client = PoliteClient(headers=headers, patience=patience, sleep=slept.append, now=lambda: NOW)
        return ParisSource(Dataset(client, portal.url, dataset), tmp_path / "cache", refetch_days=14)

    return opened


def values(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.select("service_date", "counter_id", "ts_utc", "hourly_count").sort("counter_id", "ts_utc")


def exports(portal: FakePortal) -> list[str]:
    """The conditions of the exports that were asked for."""
    return [query["where"] for path, query in portal.queries if path.endswith("/exports/parquet")]


def test_every_row_arrives_once_with_its_nulls_and_both_forms_of_ids(open_source: Open) -> None:
    source = open_source()

    batch = source.read(*source.span())

    assert source.span() == (FIRST, LAST)
    assert batch.counts.schema == COUNTS_SCHEMA
    assert_frame_equal(values(batch.counts), values(CITY))
    assert (
        batch.counts.select("latitude", "longitude").unique().rows()
        == CITY.select("latitude", "longitude").unique().rows()
    )
    assert batch.faults == ()
    assert batch.rejected.is_empty()
    assert set(batch.counts.get_column("source")) == {"paris"}
    assert set(batch.counts.get_column("source_file")) == {
        f"{DATASET}/2024-{month}" for month in ("09", "10", "11")
    }
    assert batch.counts.get_column("published_until").unique().to_list() == [hours_of_day(LAST)[-1]]


@pytest.mark.parametrize(("day", "hours"), [(date(2024, 10, 27), 25), (date(2024, 10, 1), 24), (LAST, 24)])
def test_a_day_is_the_same_alone_and_in_a_range_and_has_the_hours_of_its_clock(
    open_source: Open, day: date, hours: int
) -> None:
    alone = open_source().read(day, day).counts

    assert alone.height == 2 * hours
    assert_frame_equal(alone, open_source().read(FIRST, LAST).counts.filter(service_date=day))


def test_the_spring_day_has_23_hours(portal: FakePortal, open_source: Open) -> None:
    spring = date(2024, 3, 31)
    portal.records = api_frame(city(spring - timedelta(days=1), spring + timedelta(days=1)))

    assert open_source().read(spring, spring).counts.height == 2 * 23


def test_months_are_exported_whole_and_only_those_that_may_change_are_fetched_again(
    portal: FakePortal, open_source: Open
) -> None:
    open_source().read(FIRST, LAST)
    assert exports(portal) == [
        "date >= date'2024-09-11T22:00:00+00:00' AND date < date'2024-09-30T22:00:00+00:00'",
        "date >= date'2024-09-30T22:00:00+00:00' AND date < date'2024-10-31T23:00:00+00:00'",
        "date >= date'2024-10-31T23:00:00+00:00' AND date < date'2024-11-20T23:00:00+00:00'",
    ]
    portal.queries.clear()

    again = open_source().read(FIRST, LAST)

    # Twenty days later October cannot change any more, November can.
    assert len(exports(portal)) == 1
    assert exports(portal)[0].startswith("date >= date'2024-10-31T23:00:00+00:00'")
    assert_frame_equal(values(again.counts), values(CITY))


def test_a_month_fetched_while_it_could_change_is_fetched_again_when_it_no_longer_can(
    portal: FakePortal, open_source: Open, tmp_path: Path
) -> None:
    portal.records = api_frame(city(date(2024, 10, 1), date(2024, 11, 14)))
    october = (date(2024, 10, 1), date(2024, 10, 31))
    open_source().read(*october)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["recent.parquet"]
    portal.records = api_frame(
        city(date(2024, 10, 1), date(2024, 11, 15)).with_columns(hourly_count=pl.lit(3.0))
    )

    counts = open_source().read(*october).counts

    assert counts.get_column("hourly_count").unique().to_list() == [3.0]
    assert "2024-10-01_2024-10-31_until_20241115T22.parquet" in {
        path.name for path in (tmp_path / "cache").iterdir()
    }


def test_no_request_goes_beyond_the_limits(portal: FakePortal, open_source: Open) -> None:
    open_source().read(FIRST, LAST)

    for path, query in portal.queries:
        assert int(query.get("limit", 0)) <= 100
        assert "offset" not in query
        assert ("limit" in query) == path.endswith("/records")


def test_days_the_portal_dropped_are_refused_because_an_empty_answer_would_wipe_them_out(
    open_source: Open,
) -> None:
    with pytest.raises(
        PermanentError, match=r"counts from 2024-09-12 to 2024-11-20, not of 2024-09-01.*archive"
    ):
        open_source().read(date(2024, 9, 1), LAST)


def test_days_that_were_kept_before_the_portal_dropped_them_are_still_there(
    portal: FakePortal, open_source: Open
) -> None:
    open_source().read(FIRST, LAST)
    portal.records = portal.records.filter(pl.col("date") >= datetime(2024, 10, 5, tzinfo=UTC))

    assert_frame_equal(values(open_source().read(FIRST, LAST).counts), values(CITY))


def test_a_first_day_of_which_hours_are_gone_is_not_offered(portal: FakePortal, open_source: Open) -> None:
    portal.records = portal.records.filter(pl.col("date") >= hours_of_day(FIRST)[3])

    assert open_source().span() == (FIRST + timedelta(days=1), LAST)


def test_days_not_yet_published_are_empty(open_source: Open) -> None:
    assert open_source().read(LAST + timedelta(days=1), LAST + timedelta(days=1)).counts.is_empty()


def test_a_file_that_was_damaged_on_disk_is_named_and_fetched_anew(open_source: Open, tmp_path: Path) -> None:
    open_source().read(FIRST, LAST)
    kept = next((tmp_path / "cache").glob("2024-10-*"))
    kept.write_bytes(kept.read_bytes()[:100])

    with pytest.raises(PermanentError, match="is damaged and was removed; run again"):
        open_source().read(FIRST, LAST)

    assert_frame_equal(values(open_source().read(FIRST, LAST).counts), values(CITY))


# ---- What passes, and what does not


@pytest.mark.parametrize("kind", EVERY_FAULT)
def test_a_fault_that_passes_costs_no_row(portal: FakePortal, open_source: Open, kind: str) -> None:
    portal.set_faults(Faults(0.5, seed=3, kinds=(kind,)))

    batch = open_source(patience=Patience(attempts=30, first_wait=0.0)).read(FIRST, LAST)

    assert_frame_equal(values(batch.counts), values(CITY))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("429", "429 Too many requests"),
        ("500", "answers 500"),
        ("short_export", "rows and there are 912 records"),
        ("wrong_count", "rows and there are 913 records"),
    ],
)
def test_a_fault_that_stays_ends_in_one_line_after_a_bounded_number_of_attempts(
    portal: FakePortal, open_source: Open, slept: list[float], kind: str, words: str
) -> None:
    portal.set_faults(Faults(1.0, kinds=(kind,)))

    with pytest.raises(TransientError, match=words) as caught:
        open_source().read(FIRST, LAST)

    assert "\n" not in str(caught.value)
    assert "try again" in str(caught.value)
    assert len(slept) == QUICK.attempts - 1


def test_a_portal_that_is_not_there_is_a_transient_fault(tmp_path: Path, slept: list[float]) -> None:
    with FakePortal(api_frame(CITY)) as gone:
        client = PoliteClient(patience=QUICK, sleep=slept.append)

    with pytest.raises(TransientError, match="check the network"):
        ParisSource(Dataset(client, gone.url, DATASET), tmp_path, 14).span()

    assert len(slept) == QUICK.attempts - 1


def test_an_answer_that_trickles_for_ever_is_given_up(portal: FakePortal, open_source: Open) -> None:
    portal.set_faults(Faults(1.0, kinds=("slow",)))

    with pytest.raises(TransientError, match="takes longer than"):
        open_source(patience=Patience(attempts=2, first_wait=0.0, answer_seconds=0.001)).read(FIRST, LAST)


def test_retry_after_is_waited_out(portal: FakePortal, open_source: Open, slept: list[float]) -> None:
    portal.set_faults(Faults(0.4, seed=1, kinds=("429",)))

    open_source(patience=Patience(attempts=30)).read(FIRST, LAST)

    assert slept
    assert set(slept) == {1.0}


def test_a_spent_quota_ends_at_once_and_says_until_when(
    portal: FakePortal, open_source: Open, slept: list[float]
) -> None:
    portal.quota = 3
    portal.resets = "2024-11-22T00:00:00+00:00"

    with pytest.raises(
        TransientError, match=r"quota of calls is spent until 2024-11-22 00:00 UTC; run again then"
    ):
        open_source().read(FIRST, LAST)

    assert slept == []
    assert portal.requests.total() == 3  # It said that none is left, so no further call is made.


def test_a_quota_that_resets_soon_is_waited_for(
    portal: FakePortal, open_source: Open, slept: list[float]
) -> None:
    portal.quota, portal.resets = 1, str(int(NOW.timestamp()) + 20)
    source = open_source()
    source.dataset.span()
    portal.quota = None

    assert source.read(LAST, LAST).counts.height == 48
    assert slept == [20.0]


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("no-such", "404 The dataset 'no-such' doesn't exist.; check address and data set")],
)
def test_a_wrong_data_set_is_permanent(
    open_source: Open, slept: list[float], dataset: str, words: str
) -> None:
    with pytest.raises(PermanentError, match=words):
        open_source(dataset=dataset).span()
    assert slept == []


def test_a_wrong_key_is_permanent_and_never_shown(portal: FakePortal, open_source: Open) -> None:
    portal.key = "right"

    with pytest.raises(PermanentError, match="401 The API key is not valid; check the API key") as caught:
        open_source(key="wrong-secret").span()

    assert "wrong-secret" not in str(caught.value)
    assert open_source(key="right").span() == (FIRST, LAST)


def test_an_address_that_is_no_such_portal_is_permanent(tmp_path: Path) -> None:
    for address, words in (("nonsense", "check the address"), ("ftp://x", "check the address")):
        with pytest.raises(PermanentError, match=words):
            ParisSource(Dataset(PoliteClient(), address, DATASET), tmp_path, 14).span()


# ---- The data set changes its shape


def test_a_new_field_is_a_named_warning_told_once(portal: FakePortal, open_source: Open) -> None:
    portal.records = portal.records.with_columns(vehicle=pl.lit("bike"), counter=pl.lit("X2H20012081"))

    batch = open_source().read(FIRST, LAST)

    assert [fault.line() for fault in batch.faults] == [
        f"{DATASET}: field vehicle: is new; it is passed over; see whether it is of use"
    ]
    assert_frame_equal(values(batch.counts), values(CITY))


def test_an_optional_field_that_is_gone_is_a_named_warning(portal: FakePortal, open_source: Open) -> None:
    portal.records = portal.records.drop("installation_date")

    batch = open_source().read(FIRST, LAST)

    assert [fault.line() for fault in batch.faults] == [
        f"{DATASET}: field installation_date: is missing; its values stay empty"
    ]
    assert batch.counts.get_column("installation_date").null_count() == batch.counts.height


def test_a_required_field_that_is_gone_is_a_named_error(portal: FakePortal, open_source: Open) -> None:
    portal.records = portal.records.rename({"sum_counts": "comptage"})

    with pytest.raises(
        PermanentError, match=r"the field sum_counts is missing \(found: comptage, coordinates"
    ):
        open_source().read(FIRST, LAST)


def test_ids_may_be_numbers_and_positions_pairs(portal: FakePortal, open_source: Open) -> None:
    place = pl.col("coordinates").struct
    portal.records = portal.records.with_columns(
        id=pl.lit(100003096, pl.Int64), coordinates=pl.concat_list(place.field("lat"), place.field("lon"))
    )

    counts = open_source().read(FIRST, LAST).counts

    assert counts.get_column("site_id").unique().to_list() == ["100003096"]
    assert counts.get_column("latitude").unique().to_list() == CITY.get_column("latitude").unique().to_list()


def test_rows_that_make_no_sense_are_set_aside_with_their_month(
    portal: FakePortal, open_source: Open
) -> None:
    portal.records = portal.records.with_columns(
        sum_counts=pl.when(pl.col("date") == datetime(2024, 10, 5, tzinfo=UTC))
        .then(-1.0)
        .otherwise("sum_counts")
    )

    batch = open_source().read(FIRST, LAST)

    assert batch.counts.height == CITY.height - 2
    assert batch.rejected.get_column("source_file").unique().to_list() == [f"{DATASET} 2024-10"]
    assert "is negative" in batch.faults[0].line()


# ---- Killed, and by chance

READ = """
import sys
from datetime import date
from pathlib import Path
from bike_assets.sources import Portal, open_source
url, cache, first, last = sys.argv[1:]
source = open_source("paris", portal=Portal(url, "comptage-velo-donnees-compteurs", Path(cache)))
print(source.read(date.fromisoformat(first), date.fromisoformat(last)).counts.height)
"""


def test_killed_in_a_download_it_goes_on_where_it_was(portal: FakePortal, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", READ, portal.url, str(cache), str(FIRST), str(LAST)]
    portal.stall = lambda path, query: (
        path.endswith("parquet") and "2024-10-31T23:00:00+00:00' AND" in query["where"]
    )
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (cache / "recent.parquet.part").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (cache / "recent.parquet.part").exists()
    assert not (cache / "recent.parquet").exists()
    assert len(list(cache.glob("2024-*.parquet"))) == 2
    portal.stall = None
    portal.queries.clear()

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)

    assert int(done.stdout) == CITY.height
    assert len(exports(portal)) == 1
    assert not (cache / "recent.parquet.part").exists()


def by_chance(portal: FakePortal, folder: Path, seeds: range) -> int:
    """Read from a portal with random faults until it succeeds; every row once, whatever happened. Runs that failed."""
    first, last = date(2024, 10, 30), date(2024, 11, 2)
    small = city(first, LAST).filter(pl.col("hourly_count") < 3)
    portal.records = api_frame(small)
    expected = values(small.filter(pl.col("service_date") <= last))
    failed = 0
    for seed in seeds:
        portal.set_faults(Faults(0.25, seed, EVERY_FAULT))
        cache = folder / str(seed)
        while True:
            client = PoliteClient(patience=Patience(attempts=4, first_wait=0.0), sleep=lambda _: None)
            source = ParisSource(Dataset(client, portal.url, DATASET), cache, refetch_days=14)
            try:
                batch = source.read(first, last)
            except TransientError:
                failed += 1
                continue
            break
        assert values(batch.counts).equals(expected), f"seed {seed}"
        assert not list(cache.glob("*.part"))
    return failed


def test_fifty_runs_against_a_faulty_portal_lose_and_repeat_no_row(
    portal: FakePortal, tmp_path: Path
) -> None:
    by_chance(portal, tmp_path, range(50))
    assert portal.requests.total() > 50 * 5 * 1.2  # Faults there were.


@pytest.mark.slow
def test_a_thousand_runs_against_a_faulty_portal_lose_and_repeat_no_row(
    portal: FakePortal, tmp_path: Path
) -> None:
    failed = by_chance(portal, tmp_path, range(1000))
    assert failed > 0  # Some gave up and were run again, on what they had.
