"""Cleaning held against an independent reading of its rules, over invented days: compiled by dbt, run in DuckDB."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from bike_assets.assets.ingestion import calendar_hours
from bike_assets.core.calendar import hours_of_day, local_columns
from bike_assets.core.contracts import CLEANED_COUNTS, QUARANTINED_COUNTS, RAW_COUNTS, UTC_TIMESTAMP
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.dbt_runs import dbt

MODELS = ("cleaned_counts", "quarantined_counts")
FIRST, LAST = "cast('2016-01-01' as date)", "cast('2099-12-31' as date)"
SPRING, AUTUMN, LEAP, NEW_YEAR = date(2024, 3, 31), date(2024, 10, 27), date(2024, 2, 29), date(2023, 12, 31)

counters = st.lists(
    st.text(min_size=1, max_size=12).filter(str.strip),
    min_size=1,
    max_size=3,
    unique=True,
)


@dataclass(frozen=True)
class Sql:
    """The compiled models over an empty database in memory; each example refills it."""

    connection: duckdb.DuckDBPyConnection
    text: dict[str, str]

    def build(
        self, raw: pl.DataFrame, model: str, first: date | None = None, last: date | None = None
    ) -> pl.DataFrame:
        """What the model makes of these rows, of every day or of some."""
        calendar = (
            pl.concat(calendar_hours(day, day) for day in sorted(set(around(raw))))
            if raw.height
            else (calendar_hours(LEAP, LEAP))
        )
        for name, frame in (("raw_counts", raw), ("calendar_hours", calendar)):
            rows = frame.with_columns(pl.col(pl.Datetime("us", "UTC")).dt.replace_time_zone(None))
            self.connection.register("incoming", rows.to_arrow())
            self.connection.execute(
                f"CREATE OR REPLACE TABLE warehouse.bike_traffic_raw.{name} AS SELECT * FROM incoming"  # noqa: S608
            )
        sql = self.text[model]
        if first and last:
            sql = sql.replace(FIRST, f"date '{first}'").replace(LAST, f"date '{last}'")
        found = pl.from_arrow(self.connection.sql(sql).to_arrow_table())
        assert isinstance(found, pl.DataFrame)
        return found.with_columns(pl.col(pl.Datetime).dt.cast_time_unit("us").dt.replace_time_zone("UTC"))


def around(raw: pl.DataFrame) -> Iterator[date]:
    """The days of some rows, as `raw_counts` brings the calendar of the days it writes."""
    return iter(raw["service_date"].unique().to_list())


@pytest.fixture(scope="module")
def sql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sql]:
    path = tmp_path_factory.mktemp("rules") / "warehouse.duckdb"
    DuckDBWarehouse(path=str(path)).replace(RAW_COUNTS, RAW_COUNTS.empty(), LEAP, LEAP)
    artifacts = dbt("compile", "--select", *MODELS, "--no-introspect", warehouse=path)
    folder = artifacts / "compiled" / "bike" / "models" / "marts"
    with duckdb.connect() as connection:
        connection.execute("ATTACH ':memory:' AS warehouse; CREATE SCHEMA warehouse.bike_traffic_raw")
        yield Sql(connection, {model: (folder / f"{model}.sql").read_text() for model in MODELS})


@st.composite
def raw_rows(draw: st.DrawFn) -> pl.DataFrame:
    """Publications of a few counters around a day that is special, or another; in any order, some of them twice."""
    centre = draw(
        st.sampled_from([SPRING, AUTUMN, LEAP, NEW_YEAR]) | st.dates(date(2016, 2, 1), date(2030, 12, 1))
    )
    days = [centre + timedelta(days=offset) for offset in range(-1, 2)]
    hours = [hour for day in days for hour in hours_of_day(day)]
    # Hours of which some are absent: mostly all, now and then a day or nearly everything.
    absent = draw(st.sets(st.sampled_from(hours), max_size=len(hours)) | st.just(set()))
    rows = []
    for counter in draw(counters):
        merged = draw(st.booleans())
        level = draw(st.sampled_from([0, 1, 12, 600]))
        for index, hour in enumerate(hours):
            if hour in absent or (merged and index + 1 < len(hours) and _same_clock(hour, hours[index + 1])):
                continue
            for file in draw(st.sampled_from([("a",), ("a", "b"), ("b",), ("a", "a")])):
                count = draw(st.sampled_from([None, float(level), float(level + 1), float(level), 3000.0]))
                rows.append((counter, hour, count, file))
    for _ in range(draw(st.integers(0, 2))):  # and rows that are no counts
        odd = draw(st.sampled_from([(-1.0, 0), (2.5, 0), (4.0, 30)]))
        rows.append(("odd", hours[0] + timedelta(minutes=odd[1]), odd[0], "a"))
    return frame(draw(st.permutations(rows)) if len(rows) < 50 else rows)


def frame(rows: list[tuple[str, datetime, float | None, str]]) -> pl.DataFrame:
    """Raw counts of (counter, hour, count, file); file b was published after file a."""
    table = pl.DataFrame(
        rows,
        schema={
            "counter_id": pl.String,
            "ts_utc": UTC_TIMESTAMP,
            "hourly_count": pl.Float64,
            "source_file": pl.String,
        },
        orient="row",
    )
    early, late = datetime(2031, 1, 1, tzinfo=UTC), datetime(2031, 1, 2, tzinfo=UTC)
    return RAW_COUNTS.conform(
        local_columns(table).with_columns(
            counter_name=pl.lit(None), site_id=pl.lit(None), site_name=pl.lit(None), latitude=pl.lit(None),
            longitude=pl.lit(None), installation_date=pl.lit(None), source=pl.lit("archive"),
            published_until=pl.when(pl.col("source_file") == "a").then(early).otherwise(late), is_stray=pl.lit(False),
            ingested_at=pl.lit(late), content_hash=pl.lit("x"),
        )
    )  # fmt: skip


def _same_clock(hour: datetime, following: datetime) -> bool:
    clock = local_columns(pl.DataFrame({"ts_utc": [hour, following]}, schema={"ts_utc": UTC_TIMESTAMP}))
    return clock["local_hour"].n_unique() == 1


def expected(raw: pl.DataFrame) -> dict[tuple[str, datetime], tuple[int | None, int | None, bool]]:
    """Counter and hour → count, published count and whether it is a half, by a loop over the rows."""
    latest: dict[tuple[str, datetime], tuple[datetime, float]] = {}
    for row in raw.iter_rows(named=True):
        count = -1.0 if row["hourly_count"] is None else row["hourly_count"]
        if row["counter_id"] == "odd":
            continue
        key = (row["counter_id"], row["ts_utc"])
        latest[key] = max(
            latest.get(key, (datetime.min.replace(tzinfo=UTC), -2.0)), (row["published_until"], count)
        )
    counts = {key: None if count < 0 else int(count) for key, (_, count) in latest.items()}
    result = {key: (count, count, False) for key, count in counts.items()}
    for (counter, hour), count in counts.items():
        before = hour - timedelta(hours=1)
        if _same_clock(before, hour) and (counter, before) not in counts:
            result[counter, before] = (None if count is None else count - count // 2, count, True)
            result[counter, hour] = (None if count is None else count // 2, count, True)
    return result


RULES = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@RULES
@given(raw=raw_rows())
def test_each_counter_and_hour_stands_once_with_its_latest_value(sql: Sql, raw: pl.DataFrame) -> None:
    cleaned = CLEANED_COUNTS.conform(sql.build(raw, "cleaned_counts"))
    columns = ("hourly_count", "published_count", "is_merged_hour")
    found = {
        (row["counter_id"], row["ts_utc"]): tuple(row[c] for c in columns)
        for row in cleaned.iter_rows(named=True)
    }
    assert found == expected(raw)
    clock = local_columns(cleaned.select("ts_utc", day="service_date", hour="local_hour"))
    assert (clock["day"] == clock["service_date"]).all()
    assert (clock["hour"] == clock["local_hour"]).all()


@RULES
@given(raw=raw_rows(), seed=st.integers(0, 9))
def test_neither_order_nor_repetition_of_rows_changes_anything(
    sql: Sql, raw: pl.DataFrame, seed: int
) -> None:
    shuffled = pl.concat([raw, raw]).sample(fraction=1.0, shuffle=True, seed=seed)
    keys = ["counter_id", "ts_utc"]
    assert_frame_equal(
        sql.build(shuffled, "cleaned_counts").sort(keys), sql.build(raw, "cleaned_counts").sort(keys)
    )


@RULES
@given(raw=raw_rows())
def test_a_day_built_alone_is_the_day_in_the_range(sql: Sql, raw: pl.DataFrame) -> None:
    whole = sql.build(raw, "cleaned_counts")
    for day in sorted(set(around(raw))):
        assert_frame_equal(sql.build(raw, "cleaned_counts", day, day), whole.filter(service_date=day))


@RULES
@given(raw=raw_rows())
def test_every_row_is_cleaned_or_in_quarantine(sql: Sql, raw: pl.DataFrame) -> None:
    quarantined = QUARANTINED_COUNTS.conform(sql.build(raw, "quarantined_counts"))
    odd = raw.filter(counter_id="odd")
    assert quarantined.height == odd.height
    assert sorted(quarantined["hourly_count"].to_list()) == sorted(odd["hourly_count"].to_list())


def test_nothing_gives_nothing_and_one_hour_one_row(sql: Sql) -> None:
    assert sql.build(RAW_COUNTS.empty(), "cleaned_counts").is_empty()
    (row,) = sql.build(frame([("'; --", hours_of_day(LEAP)[0], 5.0, "a")]), "cleaned_counts").rows(named=True)
    assert (row["counter_id"], row["hourly_count"], row["is_spike"], row["is_outage"]) == (
        "'; --",
        5,
        False,
        False,
    )


def days_of(counter: str, first: date, counts: list[list[float | None]]) -> pl.DataFrame:
    rows = [
        (counter, hour, count, "a")
        for offset, day in enumerate(counts)
        for hour, count in zip(hours_of_day(first + timedelta(days=offset)), day, strict=False)
    ]
    return frame(rows)


@pytest.mark.parametrize(
    ("known_days", "peak", "count", "is_spike"),
    [
        (10, 50.0, 301.0, True),  # more than six times the usual peak
        (10, 50.0, 299.0, False),
        (6, 50.0, 301.0, False),  # too little is known
        (10, 15.0, 200.0, False),  # a counter that hardly counted anything
        (10, 200.0, 1023.0, True),  # a full register
        (10, 200.0, 1021.0, False),
        (0, 0.0, 3000.0, True),  # impossible anywhere
    ],
)
def test_a_spike_is_judged_by_the_counters_own_days_before(
    sql: Sql, known_days: int, peak: float, count: float, is_spike: bool
) -> None:
    day = [5.0, 6.0] * 11 + [peak, 5.0]
    first = date(2024, 5, 1)
    raw = days_of("c", first, [*([day] * known_days), [5.0, count]])
    cleaned = sql.build(raw, "cleaned_counts")
    last = cleaned.filter(service_date=first + timedelta(days=known_days))
    assert last["is_spike"].to_list() == [False, is_spike]
    assert not cleaned.filter(pl.col("service_date") < last["service_date"][0])["is_spike"].any()


def test_what_comes_after_a_day_changes_none_of_its_flags(sql: Sql) -> None:
    quiet, dead = [5.0, 6.0] * 11 + [60.0, 5.0], [0.0] * 24
    before = days_of("c", date(2024, 5, 1), [*([quiet] * 8), dead[:20]])
    after = days_of("c", date(2024, 5, 1), [*([quiet] * 8), dead[:20] + [0.0] * 4, dead, [9.0] * 24])
    eight = before.filter(pl.col("service_date") < date(2024, 5, 9))
    assert_frame_equal(
        sql.build(after, "cleaned_counts").filter(pl.col("service_date") < date(2024, 5, 9)),
        sql.build(eight, "cleaned_counts"),
    )
    outages = sql.build(after, "cleaned_counts").group_by("service_date").agg(pl.col("is_outage").sum())
    assert {day: n for day, n in outages.iter_rows() if n} == {date(2024, 5, 9): 24, date(2024, 5, 10): 24}
