"""Which rows a training takes and what they weigh follows from its options, and a wrong option is named."""

import json
from collections import Counter
from dataclasses import asdict
from datetime import date

import polars as pl
import pytest

from bike_assets.core.calendar import days_between
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import sample_rows
from bike_assets.core.training import RARE_COUNTER_LIMIT, TrainConfig, day_shares, parse_options, row_weights

DAYS = days_between(date(2024, 1, 1), date(2024, 4, 9))  # 100 days


def rows_of(days: list[date], counters: dict[str, int]) -> pl.DataFrame:
    """So many rows of each counter on every day, all at a level of 4."""
    keys = [(day, name, hour) for day in days for name, hours in counters.items() for hour in range(hours)]
    return pl.DataFrame(keys, schema=["service_date", "counter_id", "hour"], orient="row").with_columns(
        target_ts=pl.col("service_date").cast(pl.Datetime("us", "UTC")) + pl.duration(hours="hour"),
        level_28d=pl.lit(4.0),
    )


def test_without_a_sliding_window_every_day_gives_the_same_share() -> None:
    shares = day_shares(DAYS, 1000, 20_000, TrainConfig())
    assert list(shares) == DAYS
    assert set(shares.values()) == {0.2}
    assert set(day_shares(DAYS, 1000, 10**9, TrainConfig()).values()) == {1.0}


def test_a_sliding_window_mixes_recent_days_with_a_sample_of_the_baseline() -> None:
    shares = day_shares(DAYS, 1000, 20_000, TrainConfig(recent_days=20, recent_share=0.5))
    assert Counter(shares.values()) == {0.5: 20, 0.125: 80}
    assert {day for day, share in shares.items() if share == 0.5} == set(DAYS[-20:])
    few = day_shares(DAYS, 1000, 60_000, TrainConfig(recent_days=20, recent_share=0.5))
    assert few[DAYS[-1]] == 1.0
    assert few[DAYS[0]] == 0.375
    short = day_shares(DAYS[-10:], 1000, 5_000, TrainConfig(recent_days=20, recent_share=0.5))
    assert set(short.values()) == {0.5}


def test_each_day_is_sampled_at_its_own_share() -> None:
    rows = rows_of(DAYS, {"a": 24, "b": 24})
    shares = day_shares(DAYS, 48, 1_200, TrainConfig(recent_days=20, recent_share=0.5))
    sample = sample_rows(rows, shares, seed=3)
    recent = sample.filter(pl.col("service_date") >= DAYS[-20])
    assert 500 < recent.height < 700
    assert 500 < sample.height - recent.height < 700
    assert sample.sort(*rows.columns).equals(
        sample_rows(rows.sample(fraction=1, shuffle=True, seed=1), shares, 3).sort(*rows.columns)
    )


def test_the_weight_of_a_row_is_its_level_its_age_and_how_rare_its_counter_is() -> None:
    rows = rows_of(DAYS[:3], {"usual": 8, "also": 8, "rare": 2, "rarest": 1}).filter(
        (pl.col("counter_id") != "rarest") | (pl.col("service_date") == DAYS[2])
    )
    assert set(row_weights(rows, TrainConfig(weight_power=0.5))) == {2.0}
    aged = row_weights(rows, TrainConfig(weight_power=0.0, recency_half_life_days=1.0))
    by_day = dict(zip(rows["service_date"], aged.tolist(), strict=True))
    assert by_day == {DAYS[0]: 0.25, DAYS[1]: 0.5, DAYS[2]: 1.0}
    rare = row_weights(rows, TrainConfig(weight_power=0.0, rare_counter_power=1.0))
    by_counter = dict(zip(rows["counter_id"], rare.tolist(), strict=True))
    # Rows are 24, 24, 6 and 1: the median is 15.
    assert by_counter == {"usual": 15 / 24, "also": 15 / 24, "rare": 2.5, "rarest": RARE_COUNTER_LIMIT}


def test_options_of_a_file_are_those_of_the_training() -> None:
    config = TrainConfig(depth=7, net_layers=(8, 4), learning_rate=1.0, family="ensemble")
    stored = json.loads(json.dumps(asdict(config)))
    assert TrainConfig(**parse_options(stored, "options.json")) == config
    assert parse_options({"learning_rate": 1}, "options.json") == {"learning_rate": 1.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dept": 6}, "options.json: there is no training option 'dept'.*depth"),
        ({"depth": "6"}, "depth = '6' is no int"),
        ({"depth": True}, "depth = True is no int"),
        ({"learning_rate": None}, "learning_rate = None is no float"),
        ({"net_layers": [8, 2.5]}, r"net_layers = \[8, 2.5\]"),
    ],
)
def test_a_wrong_option_of_a_file_is_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(PermanentError, match=said):
        parse_options(options, "options.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": 0}, "depth = 0; give a value of 1 to 16"),
        ({"iterations": 0}, "iterations = 0; give a value of 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"net_layers": ()}, "at least one layer"),
    ],
)
def test_a_value_outside_its_range_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(PermanentError, match=said):
        TrainConfig(**options)  # type: ignore[arg-type]


def test_where_every_day_is_recent_there_is_no_baseline() -> None:
    config = TrainConfig(recent_days=1_000)
    assert day_shares(DAYS, 10, 100, config) == day_shares(DAYS, 10, 100, TrainConfig())
