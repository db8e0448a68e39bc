"""The dbt models over a tiny DuckDB, run by Dagster as the platform runs them."""

import os
import warnings
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from bike_assets.assets.dbt_models import (
    ACCURACY_MODELS,
    CLEANING_MODELS,
    DESCRIBING_MODELS,
    FLAG_LOOKBACK_DAYS,
)
from bike_assets.assets.ingestion import store
from bike_assets.core.calendar import hours_of_day
from bike_assets.core.contracts import (
    CLEANED_COUNTS,
    COUNTERS,
    EXPORT_DIFFERENCES,
    PREDICTIONS,
    QUARANTINED_COUNTS,
    TableContract,
)
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.runner import materialize
from bike_assets.settings import REPOSITORY, Settings
from bike_assets_tests.tables import BETA_BACKFILL_POLICY, batch, day_rows

with warnings.catch_warnings():
    # A package of dagster-dbt's, which nothing here can replace, deprecates itself while it is imported.
    warnings.filterwarnings("ignore", "sqlglotrs is deprecated", DeprecationWarning)
    from bike_assets.build import build_defs, dbt_project
    from bike_assets.resources.dbt import DbtInProcess, DbtResource, partition_environment

pytestmark = [
    # dagster-dbt reads an attribute that Dagster deprecates.
    pytest.mark.filterwarnings("ignore:AssetExecutionContext.op is deprecated:DeprecationWarning"),
    BETA_BACKFILL_POLICY,
]

FIRST = date(2024, 10, 24)
AUTUMN = date(2024, 10, 27)
LAST = date(2024, 10, 29)
DAYS = [FIRST + timedelta(days=offset) for offset in range((LAST - FIRST).days + 1)]
EARLY, LATE = datetime(2024, 11, 1, tzinfo=UTC), datetime(2024, 11, 2, tzinfo=UTC)
FORECAST_HOUR = hours_of_day(FIRST)[8]
BUILT_WHOLE = (*DESCRIBING_MODELS, *ACCURACY_MODELS)

Tables = dict[str, pl.DataFrame]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Every model's table after building the whole range, and after building two of its days alone again."""
    return build_tables(Settings(home=tmp_path_factory.mktemp("dbt"), partitions_start=FIRST))


def build_tables(settings: Settings, dbt: DbtResource | None = None) -> Tables:
    """The tables of `tables`, built by another resource `dbt` where one is given."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BIKE_WAREHOUSE", "PATH"):  # building definitions sets them; this puts them back
            patch.setenv(name, os.environ.get(name, ""))
        warehouse = DuckDBWarehouse(path=str(settings.warehouse_path))
        store(warehouse, batch(*raw()), FIRST, LAST, now=LATE)
        warehouse.replace(PREDICTIONS, predictions(), FIRST, FIRST)
        definitions = build_defs(settings, {"dbt": dbt} if dbt else None)
        with dg.DagsterInstance.ephemeral() as instance:

            def build(*assets: str, **how: Any) -> None:
                materialize(definitions, instance, assets, **how)

            build("cleaned_counts", "quarantined_counts", days=(FIRST, LAST))
            whole = warehouse.read(CLEANED_COUNTS)
            quarantined = warehouse.read(QUARANTINED_COUNTS)
            again = (AUTUMN, AUTUMN + timedelta(days=1))
            build("cleaned_counts", "quarantined_counts", days=again)
            build(*BUILT_WHOLE)
            columns = warehouse.query(
                "SELECT table_name, column_name FROM information_schema.columns "
                "WHERE table_schema = 'bike_traffic_analytics' ORDER BY table_name, ordinal_position"
            )
        return {
            "cleaned": whole,
            "again": warehouse.read(CLEANED_COUNTS),
            "columns": columns,
            **{
                name: warehouse.query(f"SELECT * FROM bike_traffic_analytics.{name}")  # noqa: S608
                for name in BUILT_WHOLE
            },
            "quarantined": quarantined,
            "quarantined again": warehouse.read(QUARANTINED_COUNTS),
        }


def raw() -> list[pl.DataFrame]:
    """One counter a case."""
    frames = [day_rows(day, "plain", lambda n: 10.0 + n) for day in DAYS]
    # A later export corrects an earlier one downwards; on the next day both end at the same hour.
    frames += [
        day_rows(FIRST, "corrected", lambda _: 50.0, published_until=EARLY, source_file="a"),
        day_rows(FIRST, "corrected", lambda _: 40.0, published_until=LATE, source_file="b"),
        day_rows(DAYS[1], "corrected", lambda _: 30.0, published_until=LATE, source_file="a"),
        day_rows(DAYS[1], "corrected", lambda _: 0.0, published_until=LATE, source_file="b"),
        day_rows(DAYS[2], "corrected", lambda _: 30.0, published_until=LATE, source_file="a"),
        day_rows(DAYS[2], "corrected", lambda _: None, published_until=LATE, source_file="b"),
        day_rows(DAYS[3], "corrected", lambda _: 7.0, published_until=LATE, source_file="a"),
        day_rows(DAYS[3], "corrected", lambda _: 7.0, published_until=LATE, source_file="b"),
    ]
    # The portal's autumn: the second of the two hours that the clock calls 2 holds both.
    hours = hours_of_day(AUTUMN)
    frames += [
        day_rows(AUTUMN, "merged", lambda n: 9.0 if n == 2 else 8.0, hours=hours[:2] + hours[3:]),
        day_rows(AUTUMN, "gap", lambda _: 8.0, hours=hours[2:3]),
        day_rows(DAYS[1], "merged", lambda _: 8.0, hours=hours_of_day(DAYS[1])[:2]),
    ]
    # Zeros from noon of the 25th to noon of the 27th; and 23 zeros, which are a quiet day and no outage.
    frames += [
        day_rows(FIRST, "dead", lambda _: 5.0),
        day_rows(DAYS[1], "dead", lambda n: 5.0 if n < 12 else 0.0),
        day_rows(DAYS[2], "dead", lambda _: 0.0),
        day_rows(AUTUMN, "dead", lambda n: 0.0 if n < 12 else 5.0),
        day_rows(FIRST, "quiet", lambda n: 5.0 if n == 0 else 0.0),
        day_rows(DAYS[1], "quiet", lambda _: 5.0),
    ]
    frames += [day_rows(FIRST, "spiky", lambda n: {3: 2999.0, 4: 3000.0}.get(n, 5.0))]
    # Five equal counts are chance, six are not; a day of the same small count is not either, by midnight.
    frames += [
        day_rows(FIRST, "stuck", lambda n: 12.0 if 3 <= n < 8 else 12.0 + n),
        day_rows(DAYS[1], "stuck", lambda n: 12.0 if 3 <= n < 9 else 40.0 + n),
        day_rows(DAYS[2], "stuck", lambda _: 5.0),
    ]
    # What cannot be a count.
    noon = hours_of_day(FIRST)[12]
    frames += [
        day_rows(FIRST, "wrong", lambda _: -1.0, hours=[noon]),
        day_rows(FIRST, "wrong", lambda _: 1.0, hours=[noon]).with_columns(is_stray=pl.lit(True)),
        day_rows(FIRST, "wrong", lambda _: 2.5, hours=[noon + timedelta(hours=1)]),
        day_rows(FIRST, "wrong", lambda _: 4.0, hours=[noon + timedelta(minutes=30)]),
    ]
    # Renamed with the newest export, which is not the one with the newest hour.
    frames += [
        day_rows(FIRST, "renamed", published_until=LATE).with_columns(counter_name=pl.lit("New")),
        day_rows(DAYS[1], "renamed", published_until=EARLY).with_columns(counter_name=pl.lit("Old")),
    ]
    return frames


def predictions() -> pl.DataFrame:
    """Forecasts of an hour that was counted, of one that nobody counted, and of one with an impossible count."""
    return PREDICTIONS.conform(
        pl.DataFrame(
            {
                "service_date": [FIRST] * 3,
                "counter_id": ["plain", "plain", "spiky"],
                "target_ts": [FORECAST_HOUR, datetime(2024, 12, 1, tzinfo=UTC), hours_of_day(FIRST)[4]],
                "horizon": [1] * 3,
                "forecast": [20.0] * 3,
                "lower_80": [17.5] * 3,
                "upper_80": [17.9] * 3,
                "lower_90": [18.0] * 3,
                "upper_90": [25.0] * 3,
                "mean4": [23.0] * 3,
                "seasonal_naive": [1.0] * 3,
                "basis": ["history"] * 3,
                "model_name": ["m"] * 3,
                "model_version": ["4"] * 3,
                "run_id": ["r"] * 3,
            }
        )
    )


def of(
    tables: Tables, counter: str, day: date | None = None, name: str = "cleaned", order: str = "ts_utc"
) -> pl.DataFrame:
    rows = tables[name].filter(counter_id=counter).sort(order)
    return rows if day is None else rows.filter(service_date=day)


def test_a_later_export_corrects_an_earlier_one_also_downwards(tables: Tables) -> None:
    rows = of(tables, "corrected", FIRST)

    assert rows.height == 24
    assert rows["hourly_count"].unique().to_list() == [40]
    assert rows["published_until"].unique().to_list() == [LATE]
    assert rows["revisions"].unique().to_list() == [2]


def test_between_exports_that_end_together_the_larger_count_stands(tables: Tables) -> None:
    assert of(tables, "corrected", DAYS[1])["hourly_count"].unique().to_list() == [30]
    assert of(tables, "corrected", DAYS[2])["hourly_count"].unique().to_list() == [30]


def test_the_same_count_published_twice_is_no_revision(tables: Tables) -> None:
    assert of(tables, "corrected", DAYS[3])["revisions"].unique().to_list() == [1]


def test_nothing_is_lost_and_nothing_is_double(tables: Tables) -> None:
    rows = pl.concat(raw())
    right = rows.filter(pl.col("counter_id") != "wrong").unique(["counter_id", "ts_utc"])
    published = (
        pl.concat([right, rows.filter(counter_id="wrong")])
        .select("counter_id", "ts_utc")
        .sort("counter_id", "ts_utc")
    )

    split = ("merged", hours_of_day(AUTUMN)[2])
    kept = [row for row in tables["cleaned"].select("counter_id", "ts_utc").rows() if row != split]
    wrong = tables["quarantined"].select("counter_id", "ts_utc").rows()
    assert sorted(kept + wrong) == published.rows()


def test_a_row_that_cannot_be_a_count_is_set_aside_with_the_reason(tables: Tables) -> None:
    found = tables["quarantined"].select("counter_id", "hourly_count", "reason").sort("hourly_count").rows()

    assert found == [
        ("wrong", -1.0, "negative count"),
        ("wrong", 1.0, "stray: hardly any counter of its file reported that day"),
        ("wrong", 2.5, "not a whole number"),
        ("wrong", 4.0, "not the start of an hour of its day"),
    ]
    assert "wrong" not in tables["cleaned"]["counter_id"]


def test_only_the_one_row_of_the_repeated_hour_is_merged_and_it_is_split(tables: Tables) -> None:
    merged = tables["cleaned"].filter("is_merged_hour").sort("ts_utc")

    first, second = hours_of_day(AUTUMN)[2:4]
    columns = ("counter_id", "ts_utc", "local_hour", "hourly_count", "published_count")
    assert merged.select(columns).rows() == [("merged", first, 2, 5, 9), ("merged", second, 2, 4, 9)]
    assert of(tables, "plain", AUTUMN).filter(local_hour=2).height == 2
    whole = tables["cleaned"].filter(~pl.col("is_merged_hour"))
    assert (whole["hourly_count"].eq_missing(whole["published_count"])).all()


def test_the_first_of_the_two_hours_alone_is_a_gap_and_no_merged_hour(tables: Tables) -> None:
    (row,) = of(tables, "gap", AUTUMN).rows(named=True)

    assert (row["ts_utc"], row["hourly_count"], row["is_merged_hour"]) == (hours_of_day(AUTUMN)[2], 8, False)


def test_a_long_run_of_zeros_is_an_outage_from_its_24th_hour_day_by_day(tables: Tables) -> None:
    flagged = of(tables, "dead").group_by("service_date").agg(pl.col("is_outage").sum()).sort("service_date")

    # Twelve zeros are not yet one on the day they are published; the flags of that day never look ahead.
    assert flagged["is_outage"].to_list() == [0, 0, 24, 12]
    assert not of(tables, "dead").filter(pl.col("hourly_count") > 0)["is_outage"].any()


def test_a_quiet_day_is_no_outage(tables: Tables) -> None:
    assert not of(tables, "quiet")["is_outage"].any()


def test_an_impossible_count_is_flagged_and_kept(tables: Tables) -> None:
    assert of(tables, "spiky").filter("is_spike")["hourly_count"].to_list() == [3000]
    assert 2999 in of(tables, "spiky")["hourly_count"]


def test_a_run_of_equal_counts_is_flagged_by_its_length_and_height(tables: Tables) -> None:
    flagged = of(tables, "stuck").filter("is_stuck")

    assert flagged.filter(service_date=FIRST).is_empty()
    assert flagged.filter(service_date=DAYS[1])["hourly_count"].to_list() == [12] * 6
    assert flagged.filter(service_date=DAYS[2])["hourly_count"].to_list() == [5] * 24
    assert not of(tables, "plain")["is_stuck"].any()


def test_a_partition_built_alone_is_the_one_built_in_a_range(tables: Tables) -> None:
    """The two days built again hold a merged hour and the end of an outage that began before them."""
    assert_frame_equal(tables["again"], tables["cleaned"], check_exact=True)
    assert_frame_equal(tables["quarantined again"], tables["quarantined"], check_row_order=False)


def test_tables_keep_their_contracts(tables: Tables) -> None:
    assert CLEANED_COUNTS.violations(tables["cleaned"]) == []
    assert QUARANTINED_COUNTS.violations(tables["quarantined"]) == []
    assert COUNTERS.violations(tables["counters"]) == []
    assert EXPORT_DIFFERENCES.violations(tables["export_differences"]) == []


def test_a_counter_is_described_by_the_newest_export_and_lives_from_first_to_last(tables: Tables) -> None:
    (row,) = tables["counters"].filter(counter_id="renamed").rows(named=True)

    assert row["counter_name"] == "New"
    assert (row["first_seen"], row["last_seen"]) == (hours_of_day(FIRST)[0], hours_of_day(DAYS[1])[-1])
    assert row["hours"] == 48
    assert tables["counters"].height == tables["cleaned"]["counter_id"].n_unique()


def test_the_level_of_a_counter_leaves_out_what_is_flagged(tables: Tables) -> None:
    means = dict(tables["counters"].select("counter_id", "mean_hourly_count").iter_rows())

    spiky = of(tables, "spiky").filter(~pl.col("is_spike"))
    assert means["spiky"] == pytest.approx(spiky["hourly_count"].mean())
    dead = of(tables, "dead").filter(~pl.col("is_outage"), ~pl.col("is_stuck"))
    assert means["dead"] == pytest.approx(dead["hourly_count"].mean())


def test_realised_errors_are_of_hours_with_believable_truth_alone(tables: Tables) -> None:
    (row,) = tables["forecast_accuracy"].rows(named=True)

    assert (row["service_date"], row["issue_date"], row["horizon"]) == (FIRST, FIRST, 1)
    assert (row["counter_id"], row["model_version"], row["hours"]) == ("plain", "4", 1)
    # Truth is 18, the forecast 20 and the baseline 23.
    sums = ("truth_sum", "truth_square_sum", "error_sum", "absolute_error_sum", "squared_error_sum")
    assert [float(row[name]) for name in sums] == [18, 324, 2, 2, 4]
    assert float(row["mean4_squared_error_sum"]) == 25
    assert (int(row["hours_in_80"]), int(row["hours_in_90"])) == (0, 1)


def described() -> dict[str, list[str]]:
    path = REPOSITORY / "dbt_project" / "models" / "marts" / "_marts.yml"
    models = yaml.safe_load(path.read_text(encoding="utf-8"))["models"]
    return {model["name"]: [column["name"] for column in model["columns"]] for model in models}


@pytest.mark.parametrize(
    "contract",
    [CLEANED_COUNTS, QUARANTINED_COUNTS, COUNTERS, EXPORT_DIFFERENCES],
    ids=lambda contract: contract.name,
)
def test_the_description_of_a_model_is_its_contract(contract: TableContract) -> None:
    path = REPOSITORY / "dbt_project" / "models" / "marts" / "_marts.yml"
    models = {model["name"]: model for model in yaml.safe_load(path.read_text(encoding="utf-8"))["models"]}
    columns = {column["name"]: column for column in models[contract.name]["columns"]}

    assert list(columns) == contract.column_names
    for column in contract.columns:
        assert columns[column.name]["description"] == column.description
        said = columns[column.name].get("config", {}).get("meta", {})
        assert column.nullable or not said.get("nullable"), column.name


@pytest.mark.parametrize("model", [*CLEANING_MODELS, *BUILT_WHOLE])
def test_every_column_of_a_model_is_described_in_order(tables: Tables, model: str) -> None:
    assert described()[model] == tables["columns"].filter(table_name=model)["column_name"].to_list()


def test_every_model_is_described_and_named_by_how_it_is_built() -> None:
    folder = Path(REPOSITORY / "dbt_project" / "models" / "marts")

    assert set(described()) == {path.stem for path in folder.glob("*.sql")}
    assert set(described()) == {*CLEANING_MODELS, *BUILT_WHOLE}


def test_days_that_look_back_are_as_many_as_the_flags_look_back() -> None:
    project = yaml.safe_load((REPOSITORY / "dbt_project" / "dbt_project.yml").read_text(encoding="utf-8"))

    assert project["vars"]["lookback_days"] == FLAG_LOOKBACK_DAYS


def test_a_counter_has_a_span_for_each_of_its_names(tables: Tables) -> None:
    spans = of(tables, "renamed", name="counter_history", order="valid_from")

    names = spans.select("counter_name", "valid_from", "valid_to", "is_renamed").rows()
    assert names == [("New", FIRST, FIRST, False), ("Old", DAYS[1], None, True)]
    assert tables["counter_history"].filter(pl.col("valid_to").is_null())["counter_id"].is_unique().all()


def test_gaps_and_runs_of_zeros_are_outages_from_end_to_end(tables: Tables) -> None:
    zeros = of(tables, "dead", name="outages", order="first_hour").rows(named=True)
    # From noon of the 25th to noon of the 27th, whose night the clock is put back; then nothing on the last two days.
    assert [(row["kind"], row["hours"], row["is_open"]) for row in zeros] == [
        ("zeros", 48, False),
        ("gap", 48, True),
    ]
    assert zeros[0]["first_hour"] == hours_of_day(DAYS[1])[12]
    gaps = of(tables, "merged", name="outages", order="first_hour").rows(named=True)
    assert [(row["kind"], row["hours"], row["is_open"]) for row in gaps] == [
        ("gap", 46, False),
        ("gap", 48, True),
    ]
    assert of(tables, "plain", name="outages", order="first_hour").is_empty()


def test_a_day_is_complete_when_each_of_its_hours_was_counted(tables: Tables) -> None:
    days = of(tables, "plain", name="daily_traffic", order="service_date")
    assert days["hours_counted"].to_list() == [24, 24, 24, 25, 24, 24]
    assert days["is_complete"].all()
    assert (
        days["daily_count"].to_list()
        == of(tables, "plain")
        .group_by("service_date", maintain_order=True)
        .agg(pl.col("hourly_count").sum())["hourly_count"]
        .to_list()
    )
    (autumn,) = of(tables, "dead", AUTUMN, "daily_traffic", order="service_date").rows(named=True)
    assert (autumn["outage_hours"], autumn["missing_hours"], autumn["is_complete"]) == (12, 0, False)
    (network,) = tables["network_totals"].filter(service_date=LAST).rows(named=True)
    assert (network["counters"], network["complete_counters"]) == (1, 1)
    assert network["mean_daily_count"] == network["total_count"] == days["daily_count"].last()


def test_a_month_counts_the_hours_of_the_life_of_a_counter(tables: Tables) -> None:
    (plain,) = of(tables, "plain", name="counter_months", order="month").rows(named=True)
    assert (plain["month"], plain["days"], plain["coverage"]) == (date(2024, 10, 1), len(DAYS), 1.0)
    (dead,) = of(tables, "dead", name="counter_months", order="month").rows(named=True)
    assert (dead["hours_counted"], dead["missing_hours"], dead["outage_hours"]) == (97, 48, 36)
    assert dead["coverage"] == pytest.approx((97 - 36) / 145)


def test_a_counter_has_a_status_and_stands_at_a_site(tables: Tables) -> None:
    status = dict(tables["counters"].select("counter_id", "status").iter_rows())
    assert (status["plain"], status["dead"], status["quiet"]) == ("new", "silent", "silent")
    assert tables["counters"]["counters_at_site"].unique().to_list() == [tables["counters"].height]


def test_the_history_of_a_model_has_its_forecasts_and_what_came_true(tables: Tables) -> None:
    (row,) = tables["model_history"].rows(named=True)
    assert (row["model_version"], row["forecasts"], row["hours_with_truth"]) == ("4", 3, 1)
    assert (row["first_issue_date"], row["last_issue_date"], row["issue_dates"]) == (FIRST, FIRST, 1)
    assert row["rmse"] == 2.0
    assert row["skill"] == pytest.approx(1 - 2 / 5)
    assert row["r2"] is None  # one hour has no variance


def test_a_build_is_limited_to_its_partitions_both_ends_included() -> None:
    assert partition_environment(FIRST, LAST) == {
        "BIKE_FIRST_DATE": "2024-10-24",
        "BIKE_LAST_DATE": "2024-10-29",
    }


def test_what_dbt_compiled_makes_the_tables_that_dbt_makes(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BIKE_WAREHOUSE", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    settings = Settings(home=tmp_path, partitions_start=FIRST)
    project = dbt_project(settings)
    in_process = DbtInProcess(
        project_dir=str(project.project_dir),
        profiles_dir=str(project.project_dir),
        artifacts_dir=str(tmp_path / "artifacts"),
    )

    found = build_tables(settings, in_process)

    assert found.keys() == tables.keys()
    for name, rows in tables.items():
        assert_frame_equal(found[name], rows, check_row_order=False)
