"""How often an experiment that is looked at every day is wrong, and how long it takes to be right.

    python benchmarks/experiment.py [--seeds 2000]

Daily gains are drawn with a standard deviation of 4 % of the champion's error, normal or heavy-tailed (Student, 3
degrees of freedom), and correlated from day to day as AR(1).
"""

import argparse
from collections import Counter
from datetime import date, timedelta

import numpy as np

from bike_assets.core.experiment import DayPair, ExperimentPolicy, compare

SPREAD = 0.04
POLICY = ExperimentPolicy()


def gains(generator: np.random.Generator, tail: str, correlation: float) -> np.ndarray:
    """One experiment's daily gains of mean zero, in shares of the champion's error."""
    n = POLICY.max_days + 50
    noise = generator.standard_normal(n) if tail == "normal" else generator.standard_t(3, n) / np.sqrt(3)
    series = np.zeros(n)
    for day in range(1, n):
        series[day] = correlation * series[day - 1] + np.sqrt(1 - correlation**2) * noise[day]
    return SPREAD * series[50:]


def days(values: np.ndarray, effect: float) -> list[DayPair]:
    """The gains as days of two models."""
    return [
        DayPair(
            date(2024, 1, 1) + timedelta(days=n), 1000, 50_000.0, 10_000.0, 10_000.0 * (1 - effect - value)
        )
        for n, value in enumerate(values)
    ]


def naive(values: np.ndarray) -> bool:
    """Whether a t-test of 5 %, looked at every day, would have found a difference."""
    return any(
        abs(values[:n].mean()) > 2.0 * values[:n].std(ddof=1) / np.sqrt(n)
        for n in range(POLICY.min_days, POLICY.max_days + 1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    seeds = parser.parse_args().seeds
    print(
        f"{'tail':<8}{'AR(1)':>6}{'effect':>8}  {'challenger':>10} {'champion':>9} {'no diff.':>9} {'days':>5}  naive"
    )
    for tail in ("normal", "heavy"):
        for correlation in (0.0, 0.3, 0.5, 0.7):
            for effect in (0.0, 0.01, 0.03, -0.03):
                if effect and (tail, correlation) not in (("normal", 0.0), ("normal", 0.3), ("heavy", 0.3)):
                    continue
                found: Counter[str] = Counter()
                lengths, peeked = [], 0
                for seed in range(seeds):
                    values = gains(np.random.default_rng(seed), tail, correlation)
                    answer = compare(days(values, effect))
                    found[answer.verdict] += 1
                    lengths.append(POLICY.min_days + len(answer.looks) - 1)
                    peeked += naive(values + effect)
                share = {name: count / seeds for name, count in found.items()}
                print(
                    f"{tail:<8}{correlation:>6}{effect:>8.0%}  {share.get('challenger_better', 0):>10.1%}"
                    f" {share.get('champion_better', 0):>9.1%} {share.get('no_difference', 0):>9.1%}"
                    f" {np.median(lengths):>5.0f}  {peeked / seeds:.1%}"
                )


if __name__ == "__main__":
    main()
