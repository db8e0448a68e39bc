"""The fixed baseline window: weeks that no model learns from, on which every challenger must prove itself.

Belongs here: where the window lies and what stays out of a training for its sake. Does not belong here: scoring models
on it (`bike_assets.assets.champion`) and deciding (`promotion`).
"""

from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl

from bike_assets.core.errors import PermanentError
from bike_assets.core.intervals import target_day

MIN_LEARNED_DAYS = 180
"""Days of history that a training keeps besides the window and its held-out days: a young city needs every day to learn
from, and has no window before."""


@dataclass(frozen=True)
class BaselineWindow:
    """Local days from `first` to `last`, both included."""

    first: date
    last: date

    def __str__(self) -> str:
        return f"{self.first}/{self.last}"

    @classmethod
    def parse(cls, text: str | None) -> "BaselineWindow | None":
        """Read what `str` wrote; None where there is nothing to read.

        Raises:
            PermanentError: it is no window.
        """
        if not text:
            return None
        try:
            first, last = map(date.fromisoformat, text.split("/"))
        except ValueError:
            raise PermanentError(
                f"baseline window {text!r} is none; write it as 2024-03-01/2024-03-28"
            ) from None
        return cls(first, last)

    def holds(self) -> pl.Expr:
        """Whether a row's target hour lies in the window."""
        return target_day().is_between(self.first, self.last)


def choose_baseline(
    first: date, last: date, *, ratio: float, days: int, held_out_days: int
) -> BaselineWindow | None:
    """Where the window lies in the history that the first training sees.

    It begins where `ratio` of the history is over, as the folder test_baseline of a snapshot does, and ends before the
    days that the training holds out. Later trainings go on beyond it, so the newest weeks are always learned.

    Args:
        first: first local day with features.
        last: last local day of counts.
        ratio: share of the days before the window.
        days: length of the window; 0 for none.
        held_out_days: days at the end that the training holds out to measure itself.

    Returns:
        The window, or None where too little history would be left to learn from.
    """
    history = (last - first).days + 1
    if days == 0 or history < days + held_out_days + MIN_LEARNED_DAYS:
        return None
    begin = min(int(history * ratio), history - held_out_days - days)
    start = first + timedelta(days=begin)
    return BaselineWindow(start, start + timedelta(days=days - 1))


def learnable(features: pl.DataFrame, window: BaselineWindow | None) -> pl.DataFrame:
    """The rows a training may see: none whose target lies in the window.

    Counts of the window stay inputs of the days after it, as they were known then.
    """
    return features if window is None else features.filter(~window.holds())
