"""Which days of counts a forecast may look at: what makes every number of the platform honest."""

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bike_assets.core.features import LOOKBACK_DAYS
from bike_assets.partitions import KNOWN_AT_ISSUE, service_days, window

START = date(2016, 1, 1)
PARTITIONS = service_days(START)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def days_read(issue_date: date) -> list[date]:
    """The partitions of counts that the features of an issue date depend on, by Dagster's own reckoning."""
    subset = PARTITIONS.empty_subset().with_partition_keys([issue_date.isoformat()])
    mapped = KNOWN_AT_ISSUE.get_upstream_mapped_partitions_result_for_partitions(
        subset, PARTITIONS, PARTITIONS, NOW
    )
    return sorted(date.fromisoformat(key) for key in mapped.partitions_subset.get_partition_keys())


@given(st.dates(date(2016, 6, 1), date(2025, 12, 31)))
@settings(max_examples=30, deadline=None)
def test_features_read_the_days_before_their_issue_date_and_no_other(issue_date: date) -> None:
    days = days_read(issue_date)

    assert max(days) == issue_date - timedelta(days=1)
    assert min(days) == issue_date - timedelta(days=LOOKBACK_DAYS)
    assert len(days) == LOOKBACK_DAYS


@pytest.mark.parametrize("change", [date(2024, 3, 31), date(2024, 10, 27)])
def test_a_change_of_the_clock_moves_no_day(change: date) -> None:
    for issue_date in (change, change + timedelta(days=1), change + timedelta(days=LOOKBACK_DAYS)):
        days = days_read(issue_date)
        assert (min(days), max(days)) == (
            issue_date - timedelta(days=LOOKBACK_DAYS),
            issue_date - timedelta(days=1),
        )


def test_early_issue_dates_read_what_there_is() -> None:
    assert days_read(START + timedelta(days=3)) == [
        START,
        START + timedelta(days=1),
        START + timedelta(days=2),
    ]
    assert days_read(START) == []


@pytest.mark.parametrize(
    ("now", "newest"),
    [
        # 00:30 in Paris is the evening before in UTC, in winter and in summer.
        (datetime(2024, 1, 14, 23, 30, tzinfo=UTC), "2024-01-15"),
        (datetime(2024, 7, 14, 22, 30, tzinfo=UTC), "2024-07-15"),
        (datetime(2024, 7, 14, 21, 30, tzinfo=UTC), "2024-07-14"),
        (datetime(2024, 3, 31, 5, tzinfo=UTC), "2024-03-31"),
        (datetime(2024, 10, 27, 6, tzinfo=UTC), "2024-10-27"),
    ],
)
def test_partitions_are_local_days_up_to_today(now: datetime, newest: str) -> None:
    keys = PARTITIONS.get_partition_keys(current_time=now)

    assert keys[-1] == newest
    assert keys[0] == START.isoformat()
    assert len(keys) == (date.fromisoformat(newest) - START).days + 1


def test_partitions_live_in_local_time() -> None:
    assert PARTITIONS.timezone == "Europe/Paris"
    assert PARTITIONS.fmt == "%Y-%m-%d"


def test_a_run_of_one_partition_is_a_window_of_one_day() -> None:
    context = dg.build_asset_context(partition_key="2024-02-25")

    assert window(context) == (date(2024, 2, 25), date(2024, 2, 25))


def test_a_range_is_one_window_with_both_ends() -> None:
    context = dg.build_asset_context(partition_key_range=dg.PartitionKeyRange("2024-02-25", "2024-03-02"))

    assert window(context) == (date(2024, 2, 25), date(2024, 3, 2))
