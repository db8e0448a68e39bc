"""What a day of production may cost in BigQuery: bytes that its statements read at most, for a city as large as Paris.

    uv run python benchmarks/bigquery_day.py [--home .bike]

The tables of a home that `make demo` has filled, by default of one made for this, of the smallest city, are put into an
emulator of BigQuery, the jobs of a Monday run there with `BIKE_ENV=prod`, and every statement that was sent is looked
at: it must carry the bound of bytes. The emulator answers a dry run with 0 bytes, so what a statement reads is
reckoned, and never too low:

- its tables, each as often as it names them, also those that it writes; 10 MB at least of each, as BigQuery bills;
- of a table the columns whose names it holds, or all where it says `*`; 8 bytes a number, date or moment, 1 a truth, 2
  and its bytes a text (https://docs.cloud.google.com/bigquery/docs/reference/standard-sql/data-types#data_type_sizes);
- of a table in months those from the earliest day on that it names; of any other, all;
- a staging or temporary table, which is gone by then, is as large as the same days of the table it is for;
- all of it times the rows that Paris publishes of thirteen months for one of this city's.

Loading and reading results by the Storage API are not billed.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
from google.cloud import bigquery

from bike_assets.assets.dbt_models import ACCURACY_MODELS, DESCRIBING_MODELS
from bike_assets.assets.forecasting import FEATURES
from bike_assets.core import contracts
from bike_assets.jobs import CLEANED
from bike_assets.resources.bigquery import BigQueryWarehouse
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import Settings
from bike_assets_tests.emulators.processes import bigquery_emulator
from bike_assets_tests.homes import SMALL_CITY, bike_assets, copy_home

PARIS_ROWS = 1_060_000
"""Hours of the city's export of thirteen months."""
LEAST_BILLED = 10 * 2**20
DOLLARS_A_TEBIBYTE = 6.25
DAY_LIMIT = 5_000_000_000
"""Bytes that docs/production.md says a day stays under."""


@dataclass(frozen=True)
class Stored:
    """Bytes of a table's columns by month, and whether it is stored in months."""

    by_month: Mapping[date | None, Mapping[str, int]]
    in_months: bool

    def read(self, columns: set[str] | None, first: date) -> int:
        """Bytes of these columns, or of all, from a day on."""
        return sum(
            size
            for month, sizes in self.by_month.items()
            if not self.in_months or month is None or month >= first.replace(day=1)
            for column, size in sizes.items()
            if columns is None or column in columns
        )


@dataclass(frozen=True)
class Statement:
    """What BigQuery was sent."""

    sql: str
    first: date
    bound: int | None

    def reads(self, tables: Mapping[str, Stored], times: float) -> int:
        """Bytes that are billed at most."""
        named = re.findall(r"\b(bike_\w+|monitoring_audit)\.(\w+)", self.sql.replace("`", ""))
        everything = re.search(r"\bselect\s+\*|\b\w+\.\*", self.sql, re.IGNORECASE)
        columns = None if everything else set(re.findall(r"\w+", self.sql))
        return sum(
            max(
                LEAST_BILLED, int(times * tables[f"{schema}.{name.split('__')[0]}"].read(columns, self.first))
            )
            for schema, name in named
        )


def statement(job: bigquery.QueryJob) -> Statement:
    """A job as it is reckoned: days that are looked back on from its earliest are days that it reads."""
    days = [date.fromisoformat(day) for day in re.findall(r"'(\d{4}-\d{2}-\d{2})'", job.query)]
    days += [each.value for each in job.query_parameters if each.type_ == "DATE"]
    back = max((int(number) for number in re.findall(r"interval (\d+) day", job.query)), default=0)
    first = min(days) - timedelta(days=back) if days else date.min
    return Statement(job.query, first, job.maximum_bytes_billed)


def stored(home: Path) -> dict[str, dict[date | None, dict[str, int]]]:
    """Of every table of a home's DuckDB file the bytes that BigQuery says its columns have, by month."""
    found = {}
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        for schema, name in connection.execute(
            "SELECT schema_name, table_name FROM duckdb_tables()"
        ).fetchall():
            columns = dict(
                connection.execute(
                    "SELECT column_name, data_type FROM duckdb_columns() WHERE schema_name = ? AND table_name = ?",
                    [schema, name],
                ).fetchall()
            )
            month = "date_trunc('month', service_date)::DATE" if "service_date" in columns else "NULL"
            sizes = ", ".join(
                f"sum(coalesce(strlen({column}), 0) + 2)"
                if dtype == "VARCHAR"
                else f"count(*) * {1 if dtype == 'BOOLEAN' else 8}"
                for column, dtype in columns.items()
            )
            rows = connection.execute(f"SELECT {month}, {sizes} FROM {schema}.{name} GROUP BY 1").fetchall()
            found[f"{schema}.{name}"] = {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}
    return found


def carry(home: Path, warehouse: BigQueryWarehouse) -> None:
    """The tables that assets of ours write, and what cleaning does; the others are made by the day's jobs."""
    local = DuckDBWarehouse(path=str(home / "warehouse.duckdb"))
    for contract in [*vars(contracts).values(), FEATURES]:
        if isinstance(contract, contracts.TableContract) and "service_date" in contract.column_names:
            rows = local.read(contract)
            days = rows["service_date"]
            if rows.height:
                warehouse.replace(contract, rows, days.min(), days.max())


def jobs_of_a_monday(today: date) -> dict[str, tuple[str, ...]]:
    """What schedules and sensors start, with the days they start it for."""
    counted = ("--from", f"{today - timedelta(days=15)}", "--to", f"{today - timedelta(days=1)}")
    return {
        "ingest": ("raw_counts", *counted),
        "clean": (*CLEANED, *counted),
        "weather": ("raw_weather", "--from", f"{today - timedelta(days=14)}", "--to", f"{today}"),
        "describe": (*DESCRIBING_MODELS, *ACCURACY_MODELS),
        "predict": ("features", "predictions", "--partition", f"{today}"),
        "monitor": ("drift_report", "retraining_decision", "--partition", f"{today}"),
    }


def statements(home: Path, city: Mapping[str, str]) -> tuple[dict[str, list[Statement]], set[str]]:
    """Every statement of a Monday's jobs, by job, and the tables that are stored in months.

    Args:
        home: whose tables they are asked of; its DuckDB file is taken away before.
        city: the variables that the home was filled with.
    """
    with bigquery_emulator() as emulator:
        environment = {**city, **emulator.environment("city")}
        settings = Settings(
            home=home, env="prod", bigquery_project="city", bigquery_location="US",
            bigquery_endpoint=emulator.endpoint, bigquery_storage_endpoint=emulator.storage_endpoint,
        )  # fmt: skip
        warehouse = BigQueryWarehouse.from_settings(settings)
        carry(home, warehouse)
        settings.warehouse_path.unlink()
        newest = warehouse.newest_day(contracts.RAW_COUNTS)
        if newest is None:
            sys.exit(f"{home} has no counts")
        found = {}
        for job, arguments in jobs_of_a_monday(newest + timedelta(days=1)).items():
            since = datetime.now(UTC)
            run("materialize", *arguments, home=home, environment=environment)
            with warehouse.connection.get_client() as client:
                sent = [
                    each for each in client.list_jobs(min_creation_time=since) if each.job_type == "query"
                ]
            found[job] = [statement(each) for each in sent]
        with warehouse.connection.get_client() as client:
            tables = [
                table
                for dataset in client.list_datasets()
                for table in client.list_tables(dataset.dataset_id)
            ]
            in_months = {
                f"{table.dataset_id}.{table.table_id}"
                for table in tables
                if client.get_table(table.reference).time_partitioning is not None
            }
        return found, in_months


def run(*arguments: str, home: Path, environment: Mapping[str, str]) -> None:
    """A command of ours, which must succeed."""
    done = bike_assets(*arguments, "--home", home, env=environment)
    if done.returncode:
        sys.exit(f"bike-assets {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def main() -> None:
    """Print each job's statements and bytes; exit with 1 where one is unbound or the day reads too much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path)
    given = parser.parse_args().home
    city = {} if given else SMALL_CITY
    with TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        if given:
            copy_home(given.resolve(), home)
        else:
            run("demo", home=home, environment=city)
        sizes = stored(home)
        times = (
            PARIS_ROWS
            / DuckDBWarehouse(path=str(home / "warehouse.duckdb")).read(contracts.RAW_COUNTS).height
        )
        sent, in_months = statements(home, city)
    tables = {name: Stored(by_month, name in in_months) for name, by_month in sizes.items()}
    read = {job: [each.reads(tables, times) for each in of_job] for job, of_job in sent.items()}
    for job, sizes in read.items():
        print(
            f"{job:10} {len(sizes):3} statements {sum(sizes) / 1e9:6.2f} GB, the largest {max(sizes) / 1e9:5.2f}"
        )
    day = sum(map(sum, read.values()))
    print(f"a Monday   {day / 1e9:.1f} GB at most, {DOLLARS_A_TEBIBYTE * day / 2**40:.2f} dollars")
    bound = Settings.model_fields["bigquery_maximum_bytes_billed"].default
    unbound = [each.sql for of_job in sent.values() for each in of_job if each.bound != bound]
    if unbound:
        sys.exit(f"{len(unbound)} statements carry no bound, the first: {unbound[0]}")
    if max(map(max, read.values())) > bound or day > DAY_LIMIT:
        sys.exit(
            f"a statement may be refused at {bound / 1e9:g} GB, or the day reads more than {DAY_LIMIT / 1e9:g}"
        )


if __name__ == "__main__":
    main()
