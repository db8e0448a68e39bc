"""Champion and challenger on the same hours: who is compared with whom, what the difference is, and when it is known.

Belongs here: assignment to an arm, and the comparison as a pure function of two models' errors day by day. Does not
belong here: forecasting, reading tables, moving an alias (`bike_assets.core.promotion` judges a challenger before it
serves; this judges one on forecasts it really issued).

The comparison may be looked at every day. A test made for one look would find a difference between equal models
sooner or later (Johari, Koomen, Pekelis and Walsh 2022, "Always Valid Inference"); the interval here holds on all
days at once. It is the t-test's confidence sequence with a normal mixture over the standardised effect (Wang and
Ramdas 2023, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"; Lindon, Ham,
Tingley and Bojinov 2022, "Anytime-Valid Linear Models"): exact for normal differences that are independent from day
to day. Days are not, so its standard error is widened by their autocorrelation; what that keeps is measured by
`benchmarks/experiment.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b
from itertools import pairwise
from math import inf, isfinite, sqrt
from typing import Literal

import numpy as np
import polars as pl

from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.core.intervals import target_day

Arm = Literal["champion", "challenger"]

Verdict = Literal["continue", "challenger_better", "champion_better", "no_difference"]
"""Every answer there is; all but the first stop the experiment."""

KEY = ("service_date", "counter_id", "target_ts")


def arm_of(subject: str, experiment: str, share: float) -> Arm:
    """Whom a counter or a caller is answered by; the same always, in every process.

    A larger share moves subjects to the challenger and none back; another experiment draws anew.

    Args:
        subject: id of a counter or name of a caller.
        experiment: its name, as the version of the challenger.
        share: share of the subjects for the challenger, 0 to 1.
    """
    digest = blake2b(f"{experiment}\x00{subject}".encode(), digest_size=8).digest()
    return "challenger" if int.from_bytes(digest, "big") < share * 2**64 else "champion"


@dataclass(frozen=True)
class ExperimentPolicy:
    """When an experiment stops.

    `alpha`: chance of finding a difference between equal models, however often one looks. `worth`: the least gain
    that is worth a change, as a share of the champion's error. `min_days` and `max_days`: days of truth before the
    first answer and for the last. `likely_effect`: standardised daily difference at which the interval is narrowest;
    it costs width elsewhere, not validity.
    """

    alpha: float = 0.05
    worth: float = 0.01
    min_days: int = 14
    max_days: int = 84
    likely_effect: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise PermanentError(f"experiment policy: alpha is {self.alpha}; give a number between 0 and 1")
        if not (isfinite(self.worth) and self.worth > 0):
            raise PermanentError(f"experiment policy: worth is {self.worth}; give a number above 0")
        if not 3 <= self.min_days <= self.max_days:
            raise PermanentError(
                f"experiment policy: min_days {self.min_days} and max_days {self.max_days} must rise from 3 on"
            )
        if not (isfinite(self.likely_effect) and self.likely_effect > 0):
            raise PermanentError(
                f"experiment policy: likely_effect is {self.likely_effect}; give a number above 0"
            )


@dataclass(frozen=True)
class DayPair:
    """Both models' absolute errors on one local day, summed over the same hours and horizons (bicycles)."""

    day: date
    hours: int
    truth: float
    champion_error: float
    challenger_error: float


@dataclass(frozen=True)
class Look:
    """What was known after one day: the challenger's gain as a share of the champion's error, and its interval."""

    day: date
    effect: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Comparison:
    """The answer, its reasons in words, and what it rests on: a look a day until the experiment stopped.

    The WAPEs are of the days that were judged; None where there are none, or nothing was counted.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    looks: tuple[Look, ...]
    champion_wape: float | None
    challenger_wape: float | None

    @property
    def stop(self) -> bool:
        """Whether there is an answer."""
        return self.verdict != "continue"


def pair_days(champion: pl.DataFrame, challenger: pl.DataFrame, truth: pl.DataFrame) -> tuple[DayPair, ...]:
    """Errors of both models by local day of the hours forecast, on hours that both forecast and that were counted.

    A day is that of the hour and not of the issue: seven forecasts of one hour err together, and must not count as
    seven days.

    Args:
        champion: `service_date`, `counter_id`, `target_ts`, `horizon` and `forecast`.
        challenger: the same.
        truth: `counter_id`, `ts_utc` and `hourly_count`; the hours that may be scored.

    Raises:
        ContractError: a row stands twice, or a forecast is not a number.
    """
    for name, frame in (("champion", champion), ("challenger", challenger)):
        if frame.select(KEY).is_duplicated().any():
            raise ContractError(
                f"experiment: a forecast of the {name} stands twice; give one version of each"
            )
        if not frame["forecast"].is_finite().all():
            raise ContractError(f"experiment: a forecast of the {name} is not a number")
    days = (
        champion.select(*KEY, "horizon", "forecast")
        .join(challenger.select(*KEY, theirs="forecast"), on=KEY)
        .join(
            truth.select("counter_id", target_ts="ts_utc", truth="hourly_count").drop_nulls("truth"),
            on=["counter_id", "target_ts"],
        )
        .group_by(day=target_day())
        .agg(
            hours=pl.len(),
            truth=pl.col("truth").sum().cast(pl.Float64),
            champion_error=(pl.col("forecast") - pl.col("truth")).abs().sum(),
            challenger_error=(pl.col("theirs") - pl.col("truth")).abs().sum(),
        )
        .sort("day")
    )
    return tuple(DayPair(**row) for row in days.iter_rows(named=True))


def compare(days: Sequence[DayPair], policy: ExperimentPolicy | None = None) -> Comparison:
    """Look at the days one after the other, as it would have been done, and stop at the first answer.

    Days after the stop change nothing, so that an answer stands.

    Args:
        days: in order of time, each once.
        policy: when to stop; defaults where None.

    Raises:
        ContractError: days are not in order.
    """
    policy = policy or ExperimentPolicy()
    if any(earlier.day >= later.day for earlier, later in pairwise(days)):
        raise ContractError("experiment: the days are not in order; sort them")
    looks: list[Look] = []
    verdict: Verdict = "continue"
    reason = f"{len(days)} days of truth, {policy.min_days} are needed"
    for n in range(policy.min_days, len(days) + 1):
        look = _look(days[:n], policy)
        looks.append(look)
        verdict, reason = _judge(look, n, policy)
        if verdict != "continue":
            break
    judged = days[: policy.min_days + len(looks) - 1] if looks else days
    total = sum(day.truth for day in judged)
    return Comparison(
        verdict,
        (*((_in_words(looks[-1], policy),) if looks else ()), reason),
        tuple(looks),
        sum(day.champion_error for day in judged) / total if total else None,
        sum(day.challenger_error for day in judged) / total if total else None,
    )


def _judge(look: Look, n: int, policy: ExperimentPolicy) -> tuple[Verdict, str]:
    if look.upper < 0:
        return "champion_better", f"stopped on {look.day}: the challenger is worse"
    if look.upper < policy.worth:
        return "no_difference", f"stopped on {look.day}: whatever it gains is less than {policy.worth:.1%}"
    if look.lower > 0:
        return "challenger_better", f"stopped on {look.day}: the challenger is better"
    if n >= policy.max_days:
        return "no_difference", f"stopped on {look.day}: {n} days have shown no difference"
    return "continue", f"{n} days do not say yet; at most {policy.max_days} are looked at"


def _in_words(look: Look, policy: ExperimentPolicy) -> str:
    return (
        f"the challenger's error is {abs(look.effect):.2%} {'smaller' if look.effect >= 0 else 'larger'} than the "
        f"champion's; {1 - policy.alpha:.0%} interval of the gain, valid on every day, "
        f"{look.lower:+.2%} to {look.upper:+.2%}"
    )


def _look(days: Sequence[DayPair], policy: ExperimentPolicy) -> Look:
    """Mean daily gain and its interval, in units of the champion's mean daily error."""
    champion = np.array([day.champion_error for day in days])
    gains = champion - np.array([day.challenger_error for day in days])
    scale = float(champion.mean())
    if scale == 0:
        return Look(
            days[-1].day, 0.0, -inf, inf
        )  # A champion without any error leaves nothing to compare with.
    mean = float(gains.mean()) / scale
    deviation = float(gains.std(ddof=1)) / scale
    error = deviation / sqrt(len(days)) * sqrt(variance_inflation(gains))
    half = _t_bound(len(days), policy) * error if error else 0.0
    return Look(days[-1].day, mean, mean - half, mean + half)


def variance_inflation(gains: np.ndarray) -> float:
    """How many times larger than for independent days the variance of their mean is, at least 1.

    (1 + r) / (1 − r), the factor of a first-order autoregression, with the lag-one autocorrelation r freed of its
    bias in short series (Marriott and Pope 1954) and kept between 0 and 0.8.
    """
    n = len(gains)
    centred = gains - gains.mean()
    squares = float(centred @ centred)
    if squares == 0 or n <= 4:
        return 1.0
    r = float(centred[1:] @ centred[:-1]) / squares
    r = min(max((n * r + 1) / (n - 4), 0.0), 0.8)
    return (1 + r) / (1 - r)


def _t_bound(n: int, policy: ExperimentPolicy) -> float:
    """|t| beyond which the mixture's likelihood ratio reaches 1 / alpha; infinite where n days cannot reach it.

    The ratio is (1 + ng)^(−1/2) · [(ν + t²) / (ν + t² / (1 + ng))]^(n/2) with ν = n − 1 and g the variance of the
    mixture; solved for t².
    """
    spread = 1 + n * policy.likely_effect**2
    ratio = (sqrt(spread) / policy.alpha) ** (2 / n)
    if ratio >= spread:
        return inf
    return sqrt((n - 1) * (ratio - 1) / (1 - ratio / spread))
