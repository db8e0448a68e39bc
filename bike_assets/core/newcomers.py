"""Counters with little or no history: what their neighbours' days look like, at a level of their own.

Belongs here: who lends to whom, and how borrowed inputs are mixed with the few that a counter has. Does not belong
here: inputs of counters with a history (`bike_assets.core.features`).

A newcomer never takes another counter's place: its inputs are means over several counters, the near ones weighing
most, each divided by its lender's level. Without a position all counters of the city lend alike. Its level comes from
its own first days as soon as there is one, and from its neighbours before.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

MIN_HISTORY_DAYS: Final = 14
"""With counts of fewer days, of the last eight weeks, a counter is a newcomer; what it has weighs by its share of
these days."""

BASES: Final = ("history", "neighbours")
"""What a forecast rests on: the counter's own counts, or for a newcomer those of others."""

LENDER_DAYS: Final = 28
"""Days of counts that a lender has at least."""
LENDERS: Final = 6
"""Nearest counters that lend to a newcomer of known position."""
NEAR_KM: Final = 0.3
"""Nearer than this a lender weighs no more: it may be the other direction of the same street."""
LEVEL_DAYS: Final = 0.5
"""A level from this many days of its own is believed by half, as against the neighbours'."""

_KM_PER_DEGREE: Final = 111.2

Array = NDArray[np.float64]


def borrow(
    features: pl.DataFrame, counts: Iterable[str], ratios: Iterable[str], positions: pl.DataFrame | None
) -> pl.DataFrame:
    """The features with those of newcomers mixed from their neighbours' of the same issue date and hour.

    Args:
        features: rows of all counters of each issue date, sorted by issue date, counter and hour.
        counts: names of features in bicycles an hour, `level_28d` not among them.
        ratios: names of other features of single counters.
        positions: counter_id, latitude, longitude; None or nulls where unknown.

    Returns:
        The rows in their order. Where nobody can lend, as they are.
    """
    blocks = features.group_by("service_date", "counter_id", maintain_order=True).agg(
        rows=pl.len(), history=pl.col("history_days").first(), dead=pl.col("dead_days").first()
    )
    newcomer = blocks["history"] < MIN_HISTORY_DAYS
    if not newcomer.any():
        return features
    starts = np.concatenate([[0], np.cumsum(blocks["rows"].to_numpy())]).astype(np.int64)
    places = {} if positions is None else _places(positions)
    counts, ratios = tuple(counts), tuple(ratios)
    columns = {name: features[name].to_numpy().astype(np.float64) for name in (*counts, *ratios, "level_28d")}
    own = {name: column.copy() for name, column in columns.items()}
    issue, ids = blocks["service_date"].to_physical().to_numpy(), blocks["counter_id"].to_list()
    history = blocks["history"].to_numpy().astype(np.float64)
    can_lend = (blocks["history"] >= LENDER_DAYS).to_numpy() & (blocks["dead"] == 0).fill_null(
        True
    ).to_numpy()
    for block in np.flatnonzero(newcomer.to_numpy()):
        candidates = np.flatnonzero((issue == issue[block]) & can_lend)
        lenders, weights = _lenders(ids[block], [ids[i] for i in candidates], places)
        if not len(lenders):
            continue
        mine = slice(starts[block], starts[block + 1])
        theirs = [slice(starts[candidates[i]], starts[candidates[i] + 1]) for i in lenders]
        usual = sum(w * np.log(own["level_28d"][rows.start]) for w, rows in zip(weights, theirs, strict=True))
        trust = history[block] / (history[block] + LEVEL_DAYS)
        level = float(np.exp((1 - trust) * usual + trust * np.log(own["level_28d"][mine.start])))
        columns["level_28d"][mine] = level
        share = history[block] / MIN_HISTORY_DAYS
        for name in (*counts, *ratios):
            total, known = np.zeros(mine.stop - mine.start), np.zeros(mine.stop - mine.start)
            for weight, rows in zip(weights, theirs, strict=True):
                value = own[name][rows] / (own["level_28d"][rows] if name in counts else 1.0)
                there = ~np.isnan(value)
                total += np.where(there, value * weight, 0.0)
                known += there * weight
            with np.errstate(invalid="ignore"):
                lent = total / np.where(known > 0, known, np.nan) * (level if name in counts else 1.0)
            has = own[name][mine]
            mixed = np.where(np.isnan(lent), has, share * has + (1 - share) * lent)
            columns[name][mine] = np.where(np.isnan(has), lent, mixed)
    return features.with_columns(
        pl.Series(name, column.astype(np.float32), nan_to_null=True) for name, column in columns.items()
    )


def _places(positions: pl.DataFrame) -> dict[str, tuple[float, float]]:
    known = positions.select("counter_id", "latitude", "longitude").drop_nulls()
    return {counter: (latitude, longitude) for counter, latitude, longitude in known.iter_rows()}


def _lenders(
    counter: str, candidates: list[str], places: dict[str, tuple[float, float]]
) -> tuple[list[int], list[float]]:
    """Which candidates lend, and their weights, which sum to 1."""
    if not candidates:
        return [], []
    here = places.get(counter)
    near = [(i, places[name]) for i, name in enumerate(candidates) if name in places]
    if here is None or not near:
        return list(range(len(candidates))), [1.0 / len(candidates)] * len(candidates)
    shrink = float(np.cos(np.radians(here[0])))
    distances = sorted(
        (_KM_PER_DEGREE * float(np.hypot(there[0] - here[0], (there[1] - here[1]) * shrink)), i)
        for i, there in near
    )[:LENDERS]
    weights = [1.0 / max(distance, NEAR_KM) for distance, _ in distances]
    return [i for _, i in distances], [weight / sum(weights) for weight in weights]
