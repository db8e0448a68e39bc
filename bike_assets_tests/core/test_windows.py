"""The baseline window: where it lies, and that no training sees it."""

from datetime import date, timedelta

import polars as pl
import pytest

from bike_assets.core.errors import PermanentError
from bike_assets.core.windows import BaselineWindow, choose_baseline, learnable

FIRST = date(2024, 1, 1)
WINDOW = BaselineWindow(date(2024, 3, 1), date(2024, 3, 28))


def chosen(history: int, ratio: float = 0.8, days: int = 28) -> BaselineWindow | None:
    return choose_baseline(
        FIRST, FIRST + timedelta(days=history - 1), ratio=ratio, days=days, held_out_days=28
    )


def test_the_window_begins_where_the_ratio_of_the_history_is_over() -> None:
    assert chosen(400) == BaselineWindow(FIRST + timedelta(days=320), FIRST + timedelta(days=347))
    assert chosen(400, 0.5) == BaselineWindow(FIRST + timedelta(days=200), FIRST + timedelta(days=227))


@pytest.mark.parametrize("history", [236, 250, 279, 281])
def test_the_window_ends_before_the_days_that_a_training_holds_out(history: int) -> None:
    window = chosen(history)

    assert window is not None
    assert (window.last - window.first).days == 27
    assert window.last < FIRST + timedelta(days=history - 28)
    if history < 280:
        assert window.last == FIRST + timedelta(days=history - 29)


def test_with_too_little_history_nothing_is_left_out() -> None:
    assert chosen(235) is None
    assert chosen(236) is not None
    assert chosen(400, days=0) is None


def test_no_row_about_an_hour_of_the_window_is_learned() -> None:
    issued = [WINDOW.first - timedelta(days=7) + timedelta(days=offset) for offset in range(42)]
    rows = pl.DataFrame(
        [(day, horizon) for day in issued for horizon in range(1, 8)],
        schema={"service_date": pl.Date, "horizon": pl.Int32},
        orient="row",
    )

    kept = learnable(rows, WINDOW)

    about = {day + timedelta(days=horizon - 1) for day, horizon in kept.iter_rows()}
    assert min(about) == WINDOW.first - timedelta(days=7)
    assert not any(WINDOW.first <= day <= WINDOW.last for day in about)
    assert {WINDOW.first - timedelta(days=1), WINDOW.last + timedelta(days=1)} <= about
    # Every row about another day is still there.
    assert rows.height - kept.height == 28 * 7
    assert learnable(rows, None).equals(rows)


def test_a_window_comes_back_from_its_text() -> None:
    assert BaselineWindow.parse(str(WINDOW)) == WINDOW
    assert BaselineWindow.parse(None) is None
    assert BaselineWindow.parse("") is None
    with pytest.raises(PermanentError, match="is none; write it as"):
        BaselineWindow.parse("March")
