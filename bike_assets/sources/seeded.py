"""Random numbers of the simulated city, the same for a day whatever else is asked for.

Belongs here: generators keyed by (seed, stream, …) and day-to-day shocks made of them. Does not belong here: what
the numbers mean. Each stream has a number of its own, which keeps its meaning for ever, or every seed's city
changes.
"""

from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

_SHOCK_MEMORY = 24  # 0.7^24 < 0.0002: days after which an AR(1) shock is forgotten.


def rng(*key: int) -> np.random.Generator:
    """A generator of its own for each key."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def daily_normals(seed: int, stream: int, index: int, days: list[date]) -> NDArray[np.float64]:
    """One standard normal for each day, the same for a day whatever the others are."""
    by_year = {
        year: rng(seed, stream, index, year).standard_normal(366) for year in {day.year for day in days}
    }
    return np.array([by_year[day.year][day.timetuple().tm_yday - 1] for day in days])


def shock(
    seed: int, stream: int, index: int, days: list[date], memory: float, spread: float
) -> NDArray[np.float64]:
    """An AR(1) of that memory and standard deviation, one value a day, cut off where it is forgotten."""
    earlier = [days[0] - timedelta(days=back) for back in range(_SHOCK_MEMORY, 0, -1)]
    steps = daily_normals(seed, stream, index, [*earlier, *days])
    total = np.zeros(len(days))
    for back in range(_SHOCK_MEMORY + 1):
        total += memory**back * steps[_SHOCK_MEMORY - back : _SHOCK_MEMORY - back + len(days)]
    scaled: NDArray[np.float64] = total * (spread * (1 - memory**2) ** 0.5)
    return scaled
