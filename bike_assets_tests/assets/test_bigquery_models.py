"""Every dbt model gives the same rows on BigQuery as on DuckDB. BigQuery is an emulator's, started by the test.

What the emulator cannot show is listed in docs/production.md.
"""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from bike_assets.assets.ingestion import store
from bike_assets.core.calendar import days_between, hours_of_day
from bike_assets.core.contracts import PREDICTIONS, RAW_COUNTS
from bike_assets.resources.bigquery import BigQueryWarehouse
from bike_assets.resources.warehouse import DuckDBWarehouse, Warehouse
from bike_assets.settings import load_settings
from bike_assets_tests.dbt_runs import PROJECT, dbt
from bike_assets_tests.tables import batch, day_rows

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(600)]

FIRST, LAST = date(2023, 10, 2), date(2023, 11, 19)
CLOCK_CHANGE = date(2023, 10, 29)
CORRECTED = date(2023, 11, 6)
GONE = date(2023, 10, 23)
MARTS = sorted(path.stem for path in (PROJECT / "models" / "marts").glob("*.sql"))
ANALYTICS = "bike_traffic_analytics"


def exports() -> pl.DataFrame:
    """A small city with everything that cleaning looks for, told by two exports that do not agree."""
    rows = []
    for day in days_between(FIRST, LAST):
        hours = hours_of_day(day)
        # The portal leaves out the first of the two hours that the clock shows twice.
        portal = [hour for number, hour in enumerate(hours) if day != CLOCK_CHANGE or number != 2]
        weekday = 40 + 20 * (day.weekday() < 5)
        spike = 2_500.0 if day == date(2023, 11, 15) else 0.0
        rows.append(
            day_rows(
                day, "c1", lambda n, w=weekday, s=spike: float(w + 7 * (n % 11)) + s * (n == 12), hours=portal
            )
        )
        dead = date(2023, 10, 17) <= day <= date(2023, 10, 19)
        stuck = day == date(2023, 11, 9)
        rows.append(
            day_rows(day, "c2", lambda n, d=dead, s=stuck: 0.0 if d else 33.0 if s else float(11 + n))
        )
        named = {"counter_name": pl.lit("Quai"), "site_id": pl.lit("q"), "site_name": pl.lit("Quai")}
        rows.append(
            day_rows(day, "c3" if day < GONE else "c4", lambda n: float(n * n % 50)).with_columns(**named)
        )
    first = pl.concat(rows).with_columns(
        source_file=pl.lit("first.csv"), published_until=pl.col("ts_utc").max()
    )
    later = first.filter(pl.col("service_date") >= CORRECTED, pl.col("counter_id") != "c4").with_columns(
        hourly_count=pl.when(pl.col("ts_utc").dt.hour() == 8)
        .then(pl.col("hourly_count") + 5)
        .otherwise("hourly_count"),
        latitude=pl.when(pl.col("counter_id") == "c1").then(48.9).otherwise("latitude"),
        source_file=pl.lit("later.csv"),
        published_until=pl.col("published_until") + timedelta(days=1),
    )
    odd = first.filter(pl.col("service_date") == CORRECTED, pl.col("counter_id") == "c2").with_row_index("n")
    faulty = odd.filter(pl.col("n") < 4).with_columns(
        hourly_count=pl.when(n=0).then(-1.0).when(n=1).then(2.5).otherwise("hourly_count"),
        ts_utc=pl.when(n=2).then(pl.col("ts_utc") + timedelta(minutes=15)).otherwise("ts_utc"),
        is_stray=pl.col("n") == 3,
        counter_id=pl.lit("odd"),
    )
    return pl.concat([first, later, faulty.drop("n")])


def forecasts() -> pl.DataFrame:
    """Two versions' forecasts of a week, near what was counted."""
    rows = []
    for issued in days_between(date(2023, 11, 10), date(2023, 11, 14)):
        for horizon in (1, 2):
            target = exports().filter(
                pl.col("service_date") == issued + timedelta(days=horizon - 1),
                pl.col("source_file") == "first.csv",
            )
            forecast = pl.col("hourly_count") * 1.1 + 0.1 * horizon
            rows.append(
                target.filter(pl.col("hourly_count").is_between(0, 1000)).select(
                    service_date=pl.lit(issued), counter_id="counter_id", target_ts="ts_utc", horizon=pl.lit(horizon),
                    forecast=forecast, lower_80=forecast * 0.9, upper_80=forecast * 1.1, lower_90=forecast * 0.7,
                    upper_90=forecast * 1.3, mean4=forecast * 0.8, seasonal_naive=forecast * 0.7,
                    basis=pl.lit("history"), model_name=pl.lit("bike-traffic"),
                    model_version=pl.lit("1" if issued.day < 12 else "2"), run_id=pl.lit("r"),
                )
            )  # fmt: skip
    return PREDICTIONS.conform(pl.concat(rows))


def fill(warehouse: Warehouse) -> None:
    store(warehouse, batch(exports()), FIRST, LAST, now=datetime(2024, 1, 1, tzinfo=UTC))
    issued = forecasts()
    warehouse.replace(PREDICTIONS, issued, issued["service_date"].min(), issued["service_date"].max())  # type: ignore[arg-type]


def marts(warehouse: Warehouse) -> dict[str, pl.DataFrame]:
    by_days = dict.fromkeys(
        ("cleaned_counts", "quarantined_counts"), " WHERE service_date >= DATE '2000-01-01'"
    )
    return {
        name: warehouse.query(f"SELECT * FROM {ANALYTICS}.{name}{by_days.get(name, '')}")  # noqa: S608
        for name in MARTS
    }


def test_every_model_gives_the_same_rows_on_both(
    bigquery_warehouse: BigQueryWarehouse, tmp_path: Path
) -> None:
    """DuckDB builds all days at once, BigQuery in two runs of which the second replaces days of the first."""
    path = tmp_path / "local" / "warehouse.duckdb"
    duck = DuckDBWarehouse(path=str(path))
    for warehouse in (duck, bigquery_warehouse):
        fill(warehouse)
    dbt("run", warehouse=path)
    prod = {"warehouse": tmp_path / "prod" / "none", "target": "prod", **load_settings().dbt_environment}
    models = [word for name in ("cleaned_counts", "quarantined_counts") for word in ("--select", name)]
    dbt("run", *models, BIKE_LAST_DATE="2023-11-08", **prod)  # type: ignore[arg-type]
    artifacts = dbt("build", BIKE_FIRST_DATE="2023-11-01", **prod)  # type: ignore[arg-type]

    results = json.loads((artifacts / "run_results.json").read_text())["results"]
    kinds = [result["unique_id"].split(".")[0] for result in results]
    assert {result["status"] for result in results} <= {"success", "pass"}
    unit_tests = yaml.safe_load((PROJECT / "models" / "unit_tests.yml").read_text(encoding="utf-8"))[
        "unit_tests"
    ]
    assert kinds.count("unit_test") == len(unit_tests), "dbt's unit tests run on BigQuery too"
    expected, found = marts(duck), marts(bigquery_warehouse)
    for name in MARTS:
        assert expected[name].height > 0, f"{name} is empty, and so shows nothing"
        assert_frame_equal(
            found[name].select(expected[name].columns).cast(dict(expected[name].schema)),  # type: ignore[arg-type]
            expected[name],
            check_row_order=False,
            check_exact=False,
            # Sums of fractions depend on the order in which they are added.
            rel_tol=1e-12,
        )
    flags = expected["cleaned_counts"].select(pl.col(pl.Boolean).sum()).row(0, named=True)
    assert min(flags.values()) > 0, flags

    with bigquery_warehouse.connection.get_client() as client:
        for relation in (f"{ANALYTICS}.cleaned_counts", RAW_COUNTS.relation):
            table = client.get_table(f"{client.project}.{relation}")
            assert (table.time_partitioning.type_, table.time_partitioning.field) == ("MONTH", "service_date")
            assert table.clustering_fields == ["counter_id"]
            assert table.require_partition_filter
        left = [table.table_id for table in client.list_tables(ANALYTICS) if "__dbt_tmp" in table.table_id]
        assert not left, "temporary tables have names of their own, and are dropped"
