"""Open-Meteo against a service that speaks its protocol: which API is asked, and that no forecast knows too much."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from bike_assets.core.calendar import hours_of_day, issue_time
from bike_assets.core.errors import PermanentError
from bike_assets.sources.open_meteo import Addresses, OpenMeteo
from bike_assets.sources.polite_http import Patience, PoliteClient
from bike_assets.sources.weather import WEATHER_SCHEMA
from bike_assets_tests.fakes.open_meteo import FORECAST_OFFSET, FakeOpenMeteo
from bike_assets_tests.fakes.service import Faults

TODAY = date(2024, 10, 30)
EARLY = datetime(2024, 10, 30, 5, 30, tzinfo=UTC)  # 06:30 in Paris
LATE = EARLY + timedelta(hours=3)

Open = Callable[..., OpenMeteo]


@pytest.fixture
def service() -> Iterator[FakeOpenMeteo]:
    with FakeOpenMeteo(EARLY) as service:
        yield service


@pytest.fixture
def opened(service: FakeOpenMeteo) -> Open:
    def opened(now: datetime = EARLY) -> OpenMeteo:
        service.now = now
        client = PoliteClient(patience=Patience(attempts=30, first_wait=0.0), sleep=lambda _: None)
        return OpenMeteo(client, 48.8566, 2.3522, service.addresses, now=lambda: now)

    return opened


def offsets(service: FakeOpenMeteo, rows: pl.DataFrame) -> dict[int, set[float]]:
    """By days ahead: how many degrees each forecast is off, which in this service says where it is from."""
    first, last = rows.get_column("ts_utc").min(), rows.get_column("ts_utc").max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    both = rows.join(service.truth(first.date(), last.date()), on="ts_utc", suffix="_truth")
    ahead = (pl.col("ts_utc").dt.convert_time_zone("Europe/Paris").dt.date() - pl.col("service_date")).dt
    grouped = both.group_by(ahead.total_days().alias("ahead")).agg(
        (pl.col("temperature_c") - pl.col("temperature_c_truth")).round(3).unique()
    )
    return {days: set(found) for days, found in grouped.iter_rows()}


def test_observed_hours_are_those_of_the_local_day_and_rain_stands_where_it_began(
    service: FakeOpenMeteo, opened: Open
) -> None:
    day = date(2024, 10, 27)

    rows = opened().read(day, day).rows.filter(kind="observed")

    assert rows.schema == WEATHER_SCHEMA
    assert rows.get_column("ts_utc").to_list() == hours_of_day(day)[: rows.height]
    assert rows.height == 25
    both = rows.join(service.truth(day - timedelta(days=1), day), on="ts_utc", suffix="_truth")
    for name in ("temperature_c", "rain_mm", "wind_kmh"):
        assert both.get_column(name).equals(both.get_column(f"{name}_truth"), check_names=False), name


def test_hours_that_the_archive_does_not_have_yet_come_later(opened: Open) -> None:
    day = TODAY - timedelta(days=2)
    before = opened().read(day, day).rows.filter(kind="observed")
    after = opened(EARLY + timedelta(days=2)).read(day, day).rows.filter(kind="observed")

    assert 0 < before.height < 24
    assert after.height == 24
    assert opened().read(TODAY, TODAY).rows.filter(kind="observed").is_empty()


def test_before_seven_the_forecast_of_today_is_the_live_one(service: FakeOpenMeteo, opened: Open) -> None:
    rows = opened().read(TODAY, TODAY).rows

    week = [hour for ahead in range(7) for hour in hours_of_day(TODAY + timedelta(days=ahead))]
    assert rows.get_column("ts_utc").to_list() == week
    assert rows.get_column("issued_at").unique().to_list() == [EARLY]
    assert offsets(service, rows) == {ahead: {FORECAST_OFFSET} for ahead in range(7)}


@pytest.mark.parametrize(
    ("now", "day"),
    [
        (LATE, TODAY),
        (EARLY, date(2024, 10, 26)),
        (EARLY, date(2024, 3, 30)),
        (EARLY, TODAY - timedelta(days=1)),
    ],
)
def test_any_other_forecast_is_what_was_predicted_on_the_day_before_and_knows_nothing_later(
    service: FakeOpenMeteo, opened: Open, now: datetime, day: date
) -> None:
    rows = opened(now).read(day, day).rows.filter(kind="forecast")

    week = [hour for ahead in range(7) for hour in hours_of_day(day + timedelta(days=ahead))]
    assert rows.get_column("ts_utc").to_list() == week
    assert offsets(service, rows) == {ahead: {float(ahead + 1)} for ahead in range(7)}
    assert (rows.get_column("issued_at") < issue_time(day)).all()
    assert (rows.get_column("issued_at") >= hours_of_day(day - timedelta(days=1))[0]).all()


def test_a_range_is_the_same_as_its_days_and_takes_one_call_a_quarter(
    service: FakeOpenMeteo, opened: Open
) -> None:
    first, last = date(2024, 10, 20), date(2024, 10, 30)
    together = opened().read(first, last).rows
    assert service.requests.total() == 3

    for day in (first, date(2024, 10, 27), TODAY):
        alone = opened().read(day, day).rows
        assert alone.sort("kind", "ts_utc").equals(together.filter(service_date=day).sort("kind", "ts_utc"))


def test_days_before_the_service_kept_predictions_have_none(opened: Open) -> None:
    rows = opened().read(date(2020, 1, 1), date(2020, 1, 1)).rows

    assert set(rows.get_column("kind")) == {"observed"}


def test_faults_that_pass_cost_nothing(service: FakeOpenMeteo, opened: Open) -> None:
    expected = opened().read(TODAY - timedelta(days=9), TODAY).rows
    for seed in range(6):
        service.set_faults(Faults(0.3, seed))
        assert opened().read(TODAY - timedelta(days=9), TODAY).rows.equals(expected)


def test_a_refusal_is_permanent_and_says_why(service: FakeOpenMeteo) -> None:
    service.now = datetime(2024, 1, 1, tzinfo=UTC)
    for address, words in (
        (f"{service.url}/v1/archive", r"400 Parameter 'end_date' is out of allowed range"),
        ("nonsense", "check the address"),
    ):
        source = OpenMeteo(PoliteClient(), 48.9, 2.4, Addresses(archive=address))
        with pytest.raises(PermanentError, match=words):
            source.read(date(2024, 9, 1), date(2024, 9, 1))
