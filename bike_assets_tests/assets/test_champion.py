"""Who serves: what is compared with what, and what the log and the registry say of it afterwards."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from bike_assets.assets.champion import build_champion, judge
from bike_assets.assets.forecasting import FEATURES
from bike_assets.core.contracts import AUDIT_LOG, CLEANED_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.core.model import Forecaster
from bike_assets.core.promotion import PromotionPolicy
from bike_assets.core.windows import BaselineWindow
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.championship import Championship, ChampionStore, Request
from bike_assets.resources.registry import CHALLENGER, CHAMPION, PREVIOUS, ModelVersion
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.runner import Outcome, materialize
from bike_assets_tests.stores import Bundles, Registry, fresh_registry, no_bundles, version
from bike_assets_tests.tables import (
    BETA_BACKFILL_POLICY,
    TRAINED_UNTIL,
    small_city,
    small_features,
    small_forecaster,
)

pytestmark = BETA_BACKFILL_POLICY

KEYS = ["service_date", "counter_id", "target_ts"]
FIRST_FEATURES = TRAINED_UNTIL - timedelta(days=23)
POLICY = PromotionPolicy()


@pytest.fixture
def filled(tmp_path: Path) -> DuckDBWarehouse:
    """Cleaned counts of the small city, a week beyond the training, and the features of the training."""
    found = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    days = small_city()["service_date"]
    found.replace(CLEANED_COUNTS, small_city(), days.min(), days.max())  # type: ignore[arg-type]
    found.replace(FEATURES, small_features(FIRST_FEATURES, TRAINED_UNTIL), FIRST_FEATURES, TRAINED_UNTIL)
    return found


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def registry() -> Registry:
    return fresh_registry()


def stores(warehouse: DuckDBWarehouse) -> tuple[AuditLog, ChampionStore]:
    folder = Path(warehouse.path).parent
    audit = AuditLog(folder=str(folder / "audit"), keys_dir=str(folder / "keys"), env="local")
    return audit, ChampionStore(folder=str(folder / "audit"), promoters=["anna"], approvers=[])


def championship(warehouse: DuckDBWarehouse, registry: Registry) -> Championship:
    audit, store = stores(warehouse)
    return store.open(registry, no_bundles(), warehouse, audit)


def run(
    policy: PromotionPolicy, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, registry: Registry
) -> Outcome:
    audit, store = stores(warehouse)
    resources = {
        "warehouse": warehouse,
        "registry": registry,
        "bundles": no_bundles(),
        "audit": audit,
        "championship": store,
    }
    definitions = dg.Definitions(assets=[build_champion(policy)], resources=resources)
    return materialize(definitions, instance, ["champion"])


def logged(warehouse: DuckDBWarehouse) -> list[str]:
    return warehouse.read(AUDIT_LOG)["event"].to_list()


def truth_days() -> list[date]:
    return sorted(holdout_days(small_forecaster().holdout)["day"].unique())


def holdout_days(holdout: pl.DataFrame) -> pl.DataFrame:
    local = pl.col("target_ts").dt.convert_time_zone("Europe/Paris").dt.date()
    return holdout.with_columns(day=local)


def r2(truth: pl.Series, forecast: pl.Series) -> float:
    t, f = truth.to_numpy(), forecast.to_numpy()
    return float(1 - ((t - f) ** 2).sum() / ((t - t.mean()) ** 2).sum())


def test_the_first_challenger_is_judged_on_all_days_it_did_not_see(
    filled: DuckDBWarehouse, registry: Registry
) -> None:
    answer = judge(version("1"), None, registry, filled, PromotionPolicy(min_days=1, floor_r2=-10))

    holdout = small_forecaster().holdout
    assert answer.promote
    assert answer.n_days == len(truth_days())
    assert answer.challenger_r2 == pytest.approx(r2(holdout["hourly_count"], holdout["forecast"]))


def test_days_that_the_incumbent_was_trained_on_are_left_out_for_both(
    filled: DuckDBWarehouse, registry: Registry
) -> None:
    days = truth_days()
    incumbent = version("9", trained_until=days[2])

    answer = judge(version("1"), incumbent, registry, filled, PromotionPolicy(min_days=1))

    rows = holdout_days(small_forecaster().holdout).filter(pl.col("day") > days[2])
    theirs = (
        small_forecaster(9)
        .predict(rows.select(KEYS).join(filled.read(FEATURES), on=KEYS))
        .rename({"forecast": "theirs"})
    )
    joined = rows.join(theirs.select(*KEYS, "theirs"), on=KEYS)
    assert joined.height == rows.height > 0
    assert answer.n_days == len(days) - 3
    assert answer.challenger_r2 == pytest.approx(r2(joined["hourly_count"], joined["forecast"]))
    assert answer.champion_r2 == pytest.approx(r2(joined["hourly_count"], joined["theirs"]))


def with_window(
    number: str, window: BaselineWindow | None, trained_until: date = TRAINED_UNTIL
) -> ModelVersion:
    plain = version(number, trained_until)
    tags = {**plain.tags, **({"baseline_window": str(window)} if window else {})}
    return ModelVersion(plain.name, plain.version, plain.run_id, tags)


WINDOW = BaselineWindow(TRAINED_UNTIL - timedelta(days=15), TRAINED_UNTIL - timedelta(days=11))


def test_on_the_baseline_window_both_forecast_the_same_rows(
    filled: DuckDBWarehouse, registry: Registry
) -> None:
    incumbent = with_window("9", WINDOW, truth_days()[0])

    answer = judge(with_window("1", WINDOW), incumbent, registry, filled, PromotionPolicy(min_days=1))

    local = pl.col("target_ts").dt.convert_time_zone("Europe/Paris").dt.date()
    truth = small_city().select("counter_id", "hourly_count", target_ts="ts_utc")
    rows = (
        filled.read(FEATURES)
        .filter(local.is_between(WINDOW.first, WINDOW.last))
        .join(truth, on=["counter_id", "target_ts"])
        .drop_nulls("hourly_count")
    )
    ours, theirs = (small_forecaster(seed).predict(rows)["forecast"] for seed in (1, 9))
    assert answer.baseline_r2 == pytest.approx(r2(rows["hourly_count"], ours))
    assert answer.champion_baseline_r2 == pytest.approx(r2(rows["hourly_count"], theirs))
    assert answer.baseline_r2 != answer.challenger_r2


@pytest.mark.parametrize("other", [None, BaselineWindow(WINDOW.first, WINDOW.last - timedelta(days=1))])
def test_a_champion_that_learned_from_the_baseline_window_is_not_scored_on_it(
    filled: DuckDBWarehouse, registry: Registry, other: BaselineWindow | None
) -> None:
    incumbent = with_window("9", other, truth_days()[0])

    answer = judge(with_window("1", WINDOW), incumbent, registry, filled, PromotionPolicy(min_days=1))

    assert answer.champion_baseline_r2 is None
    assert answer.champion_r2 is not None
    assert answer.baseline_r2 is not None


def test_days_counted_since_the_training_are_judged_too(filled: DuckDBWarehouse, registry: Registry) -> None:
    issued = TRAINED_UNTIL + timedelta(days=1), TRAINED_UNTIL + timedelta(days=3)
    filled.replace(FEATURES, small_features(*issued), *issued)
    incumbent = version("9", trained_until=truth_days()[2])

    answer = judge(version("1"), incumbent, registry, filled, PromotionPolicy(min_days=1))

    later = small_features(*issued).join(
        small_city().select("counter_id", "hourly_count", target_ts="ts_utc").drop_nulls(),
        on=["counter_id", "target_ts"],
    )
    counted = holdout_days(later)["day"].n_unique()
    assert counted == 7, "issued on three days, counted until a week after the training"
    assert answer.n_days == len(truth_days()) - 3 + counted
    held_out = holdout_days(small_forecaster().holdout).filter(pl.col("day") > truth_days()[2])
    truth = pl.concat([held_out["hourly_count"], later["hourly_count"].cast(pl.Float64)])
    forecast = pl.concat([held_out["forecast"], small_forecaster(1).predict(later)["forecast"]])
    assert answer.challenger_r2 == pytest.approx(r2(truth, forecast))


def test_without_a_day_that_neither_has_seen_nobody_is_promoted(
    filled: DuckDBWarehouse, registry: Registry
) -> None:
    answer = judge(version("1"), version("9", trained_until=truth_days()[-1]), registry, filled, POLICY)

    assert not answer.promote


def test_the_first_champion_is_published_before_it_is_named(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHALLENGER] = version("1")

    outcome = run(PromotionPolicy(min_days=1, floor_r2=-10), instance, filled, registry)

    assert registry.done == ["bundle of 1", "champion -> 1"]
    assert outcome.metadata["champion"]["bundle_id"].value == "b" * 31 + "1"
    assert logged(filled) == ["judged", "promotion_begun", "promoted"]
    row = filled.read(AUDIT_LOG).row(2, named=True)
    assert (row["actor"], row["model_version"], row["replaced_version"]) == ("automation", "1", None)
    assert row["deployment_decision"] == "first_champion"
    assert row["service_date"] == TRAINED_UNTIL + timedelta(days=8)


def test_a_challenger_that_is_no_better_leaves_the_champion_where_it_is(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHALLENGER] = version("1")
    registry.aliases[CHAMPION] = version("9", trained_until=truth_days()[0])
    registry.broken.add("1")

    run(PromotionPolicy(min_days=1), instance, filled, registry)

    assert registry.aliases[CHAMPION].version == "9"
    assert registry.done == ["bundle of 9"]
    assert logged(filled) == ["adopted", "judged"]


def test_a_promotion_remembers_who_served_before(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.aliases[CHALLENGER] = version("1")
    registry.aliases[CHAMPION] = version("9", trained_until=truth_days()[0])

    class Awful(Forecaster):
        def predict(self, features: pl.DataFrame) -> pl.DataFrame:
            return small_forecaster().predict(features).with_columns(forecast=pl.lit(500.0))

    monkeypatch.setattr(Registry, "load_forecaster", lambda _self, _version: Awful())
    run(PromotionPolicy(min_days=1, floor_r2=-10), instance, filled, registry)

    assert registry.done == ["bundle of 1", "champion -> 1", "previous -> 9"]
    assert registry.aliases[PREVIOUS].version == "9"


def test_deciding_again_changes_nothing(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHALLENGER] = registry.aliases[CHAMPION] = version("1")

    outcome = run(POLICY, instance, filled, registry)

    assert outcome.metadata["champion"]["decision"].value == "unchanged"
    assert registry.done == ["bundle of 1"]


def test_a_version_that_a_person_took_back_is_not_promoted_again(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHAMPION] = version("9")
    title = championship(filled, registry)
    title.state()
    title.promote(version("1"), Request("anna", "try it", "first"))
    title.rollback("1", Request("anna", "it was no good", "second"))
    registry.aliases[CHALLENGER] = version("1")

    outcome = run(POLICY, instance, filled, registry)

    assert outcome.metadata["champion"]["decision"].value == "barred"
    assert registry.aliases[CHAMPION].version == "9"
    assert PREVIOUS not in registry.aliases


def test_a_winner_waits_where_a_person_has_the_last_word(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHALLENGER] = version("1")
    policy = PromotionPolicy(min_days=1, floor_r2=-10, require_approval=True)
    with pytest.raises(PermanentError, match="nothing serves yet"):
        run(policy, instance, filled, registry)
    assert CHAMPION not in registry.aliases

    result = championship(filled, registry).approve("1", Request("anna", "looks right", "third"))

    assert (result.outcome, registry.aliases[CHAMPION].version) == ("changed", "1")
    assert logged(filled) == ["judged", "approved", "promotion_begun", "promoted"]


def test_a_bundle_that_cannot_be_written_moves_no_alias(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHALLENGER] = version("1")
    Bundles.fails.append("the disk is full; make room")

    with pytest.raises(PermanentError, match="the disk is full"):
        run(PromotionPolicy(min_days=1, floor_r2=-10), instance, filled, registry)

    assert CHAMPION not in registry.aliases


def test_without_a_challenger_it_says_what_to_do(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    with pytest.raises(PermanentError, match="materialise trained_model first"):
        run(POLICY, instance, filled, registry)


def test_nothing_below_the_floor_serves_even_where_nobody_does(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHALLENGER] = version("1")
    registry.broken.add("1")

    with pytest.raises(PermanentError, match="was not promoted and nothing serves yet"):
        run(PromotionPolicy(min_days=1), instance, filled, registry)
