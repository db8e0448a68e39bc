"""A seeded synthetic city, so that everything runs offline and every hard case of real counts is at hand.

Belongs here: how the invented city behaves and publishes. Does not belong here: the wall clock (the last day
is an argument) and anything about real files.

What a counter shows on a day depends on the seed, the counter and the day alone: not on the range asked for,
on `first_day`, `last_day` or the number of counters. All draws are made for whole UTC months from generators
keyed by (seed, stream, counter, year, month), and everything that happens (openings, renamings, outages) is
placed on the calendar, not counted from a range. Daily reads therefore add up to exactly one long read.

The count of counter c in hour h is negative binomial with mean

    level_c · profile_c(day type, local hour) · season · holiday · exp(city shock + own shock) · weather · growth

where both shocks are AR(1) over days and the weather is that of `simulated_weather`. Columns are those of
`COUNTS_SCHEMA`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum, StrEnum
from functools import cached_property
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.calendar import (
    LOCAL_TZ,
    calendar_table,
    days_between,
    hours_of_day,
    local_columns,
)
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.errors import PermanentError
from bike_assets.sources.base import COUNTS_SCHEMA, REJECTED_SCHEMA, SORT_KEY, SourceBatch
from bike_assets.sources.seeded import rng, shock
from bike_assets.sources.simulated_weather import month_weather, traffic_factor

DEFAULT_FIRST_DAY = date(2023, 7, 1)
DEFAULT_LAST_DAY = date(2024, 6, 30)

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


class Scenario(StrEnum):
    """Something that changes on `scenario_start`, for trying what watches over the data."""

    HALVED_COUNTER = "halved_counter"
    """The first counter sees half of what passes."""
    DEAD_COUNTER = "dead_counter"
    """The first counter sees nothing any more."""
    CITY_SHOCK = "city_shock"
    """Every counter falls to 60 %."""
    TREND = "trend"
    """Every counter grows by half a percent of its old level a day, up to double."""
    NEW_COUNTER = "new_counter"
    """A counter nobody has seen before starts."""
    STUCK_COUNTER = "stuck_counter"
    """The first counter gives the same count again and again."""
    STRIKE = "strike"
    """For five days no trains: on working days four fifths more ride."""
    LATE_CORRECTION = "late_correction"
    """The first counter's days come as zeros, and a week later as they were."""
    SCHEMA_CHANGE = "schema_change"
    """The source gives neither site nor installation date any more."""


class _Kind(Enum):
    """Who rides past. Weekday and weekend profiles by local hour, before normalisation."""

    COMMUTER = (
        (7, 4, 2, 2, 2, 6, 14, 50, 160, 140, 40, 32, 42, 42, 38, 40, 52, 100, 160, 135, 60, 32, 24, 16),
        (20, 13, 11, 6, 5, 4, 4, 7, 14, 23, 29, 34, 40, 39, 41, 46, 47, 47, 48, 46, 36, 24, 20, 20),
    )
    LEISURE = (
        (12, 8, 5, 3, 3, 4, 8, 25, 80, 80, 45, 42, 52, 54, 52, 52, 60, 76, 100, 94, 66, 44, 38, 28),
        (30, 20, 17, 9, 7, 6, 8, 14, 30, 52, 66, 76, 84, 86, 94, 104, 106, 100, 90, 76, 58, 40, 34, 32),
    )
    MIXED = (
        (10, 5, 4, 2, 2, 5, 10, 37, 126, 113, 42, 36, 46, 46, 43, 42, 53, 84, 131, 117, 63, 36, 30, 22),
        (27, 18, 15, 8, 6, 5, 6, 9, 19, 31, 38, 45, 54, 52, 54, 61, 63, 63, 63, 62, 48, 32, 27, 27),
    )


# Independent streams of random numbers; a number once given keeps its meaning, or every seed's city changes.
# 2 and those from 8 on belong to `simulated_weather`.
_COUNTER, _CITY_SHOCK, _OWN_SHOCK, _COUNTS, _EVENTS, _SCENARIO, _CALENDAR = 0, 1, 3, 4, 5, 6, 7

_STREETS = (
    "quai du Dérailleur",
    "boulevard de la Dynamo",
    "rue du Garde-Boue",
    "avenue des Pignons",
    "pont de la Sonnette",
    "rue des Rayons-Voilés",
    "allée du Tandem",
    "place de la Roue-Libre",
    "rue de la Selle-Bleue",
    "quai des Mésanges",
    "avenue du Vieux-Pédalier",
    "boulevard du Guidon",
)
_DIRECTIONS = (("N-S", "S-N"), ("E-O", "O-E"), ("NE-SO", "SO-NE"), ("NO-SE", "SE-NO"))

_ROLES = 12
_ROLE_RENAMED, _ROLE_CORRECTED, _ROLE_REPLACED = 2, 3, 11
"""Of every twelve counters, one is renamed each spring, one corrected late, one replaced each spring."""

_MAX_OUTAGE_HOURS = 24 * 20
_CORRECTION_DELAY = timedelta(days=7)
_GAP_BEFORE_REPLACEMENT = timedelta(days=20)
_STRIKE_DAYS = 5
_NEWCOMER = 960  # Index of the scenario's counter: out of every city's way, and without a role.


@dataclass(frozen=True)
class _Site:
    """What does not change about a counter."""

    index: int
    kind: _Kind
    level: float
    morning: float
    growth: float
    dispersion: float
    latitude: float
    longitude: float
    street: str
    direction: str
    site_number: int


@dataclass(frozen=True)
class _Month:
    """The hours of one UTC month and what they share across the city; arrays have one entry an hour.

    `ts` is in seconds since 1970, `day_index` points into `days`, `city` and `holiday` are factors.
    """

    year: int
    month: int
    ts: _Ints
    local_hour: _Ints
    day_index: _Ints
    days: list[date]
    city: _Floats
    holiday: dict[_Kind, _Floats]
    weekend: _Bools


@dataclass(frozen=True)
class SimulatorSource:
    """The synthetic city as a `CountsSource`.

    Attributes:
        seed: which city.
        counters: how many counters at a time, 1 to 200. One in twelve is replaced each spring, so a long
            range has more distinct ids.
        first_day, last_day: first and last local day it can give.
        scenario: what goes wrong, if anything.
        scenario_start: first local day of the scenario; needed with one.
        known_on: leave out what was published after this local day (late corrections). None: everything.

    Raises:
        PermanentError: a setting makes no sense.
    """

    name: ClassVar[str] = "simulator"

    seed: int = 7
    counters: int = 12
    first_day: date = DEFAULT_FIRST_DAY
    last_day: date = DEFAULT_LAST_DAY
    scenario: Scenario | None = None
    scenario_start: date | None = None
    known_on: date | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.counters <= 200:
            raise PermanentError(f"simulator: counters is {self.counters}; give 1 to 200")
        if self.seed < 0:
            raise PermanentError(f"simulator: seed is {self.seed}; give 0 or more")
        if self.first_day > self.last_day:
            raise PermanentError(
                f"simulator: first day {self.first_day} is after last day {self.last_day}; swap them"
            )
        if (self.scenario is None) != (self.scenario_start is None):
            raise PermanentError(
                "simulator: a scenario and its start day belong together; give both or neither"
            )

    def span(self) -> tuple[date, date]:
        """First and last local day, as configured."""
        return self.first_day, self.last_day

    def read(self, first: date, last: date) -> SourceBatch:
        """Rows whose `service_date` lies in [first, last] and in the span; no faults, nothing rejected."""
        first, last = max(first, self.first_day), min(last, self.last_day)
        empty = pl.DataFrame(schema=REJECTED_SCHEMA)
        if first > last:
            return SourceBatch(pl.DataFrame(schema=COUNTS_SCHEMA), empty)
        rows = pl.concat(self._month_rows(year, month) for year, month in _months(first, last))
        rows = local_columns(rows.with_columns(pl.from_epoch("ts_utc", "s").cast(UTC_TIMESTAMP)))
        rows = rows.filter(pl.col("service_date").is_between(first, last))
        counts = (
            _published(rows)
            .join(self._names, on="index")
            .filter(pl.col("service_date") >= pl.col("since"), pl.col("service_date") < pl.col("until"))
            .sort(SORT_KEY, nulls_last=True)
        )
        if self.scenario is Scenario.SCHEMA_CHANGE and self.scenario_start is not None:
            lost = ("site_id", "site_name", "installation_date")
            given = pl.col("service_date") < self.scenario_start
            counts = counts.with_columns(pl.when(given).then(pl.col(lost)))
        if self.known_on is not None:
            counts = counts.filter(
                pl.col("published_until").dt.convert_time_zone(LOCAL_TZ).dt.date() <= self.known_on
            )
        return SourceBatch(counts.select(COUNTS_SCHEMA.names()), empty)

    def faults(self, first: date, last: date) -> pl.DataFrame:
        """What the simulator broke, as truth for whatever looks for it; a scenario is not in it.

        Returns:
            A row an hour of [first, last] and of the span: `service_date`, `counter_id`, `ts_utc`, `fault`: `zero`
            and `silent` (an outage), `spike`, or `removed` (after its last day, for good).
        """
        first, last = max(first, self.first_day), min(last, self.last_day)
        rows = pl.concat(self._month_faults(year, month) for year, month in _months(first, last))
        rows = local_columns(rows.with_columns(pl.from_epoch("ts_utc", "s").cast(UTC_TIMESTAMP)))
        # A renamed counter keeps its id.
        lives = self._names.group_by("index", "counter_id").agg(pl.col("since").min(), pl.col("until").max())
        return (
            rows.filter(pl.col("service_date").is_between(first, last))
            .join(lives, on="index")
            .filter(pl.col("service_date") >= pl.col("since"))
            .with_columns(
                fault=pl.when(pl.col("service_date") >= pl.col("until"))
                .then(pl.lit("removed"))
                .otherwise("fault")
            )
            .drop_nulls("fault")
            .select("service_date", "counter_id", "ts_utc", "fault")
            .sort("counter_id", "ts_utc")
        )

    def _month_faults(self, year: int, month: int) -> pl.DataFrame:
        shared = _shared(self.seed, year, month)
        parts = []
        for site in self._sites:
            events = _events(self.seed, site, shared)
            fault = np.full(len(shared.ts), None, dtype=object)
            fault[events.zero], fault[events.lost] = "zero", "silent"
            fault[list(events.spikes)] = "spike"
            parts.append(
                pl.DataFrame(
                    {"ts_utc": shared.ts, "fault": fault.tolist()},
                    schema={"ts_utc": pl.Int64, "fault": pl.String},
                ).with_columns(index=pl.lit(site.index, dtype=pl.Int64))
            )
        return pl.concat(parts)

    @cached_property
    def _sites(self) -> tuple[_Site, ...]:
        newcomer = (_NEWCOMER,) if self.scenario is Scenario.NEW_COUNTER else ()
        return tuple(_site(self.seed, index) for index in (*range(self.counters), *newcomer))

    @cached_property
    def _names(self) -> pl.DataFrame:
        years = range(self.first_day.year - 1, self.last_day.year + 1)
        return pl.concat(_names(self.seed, site, years) for site in self._sites)

    def _month_rows(self, year: int, month: int) -> pl.DataFrame:
        """What the portal would publish of one UTC month: outages and clock change applied, no names yet."""
        shared = _shared(self.seed, year, month)
        merged = _merged_hours(shared)
        values, kept, corrected = [], [], []
        for site in self._sites:
            counts = self._with_scenario(site, shared, _undisturbed(self.seed, site, shared))
            events = _events(self.seed, site, shared)
            counts[list(events.spikes)] = list(events.spikes.values())
            counts[events.zero] = 0
            present = ~events.silent
            for hour in merged:
                counts[hour] += counts[hour - 1] if present[hour - 1] else 0
                present[hour - 1] = False
            if site.index == _NEWCOMER and self.scenario_start is not None:
                present &= self._begun(shared)
            late = events.corrected
            if self.scenario is Scenario.LATE_CORRECTION and site.index == 0:
                late = late | self._begun(shared)
            values.append(counts)
            kept.append(present)
            corrected.append(late & present)
        return pl.DataFrame(
            {
                "index": np.repeat([site.index for site in self._sites], len(shared.ts)),
                "ts_utc": np.tile(shared.ts, len(self._sites)),
                "hourly_count": np.concatenate(values).astype(np.float64),
                "kept": np.concatenate(kept),
                "corrected": np.concatenate(corrected),
            }
        ).filter("kept")

    def _begun(self, shared: _Month) -> _Bools:
        """The hours of the scenario, none without one."""
        start = self.scenario_start or date.max
        begun: _Bools = np.array([day >= start for day in shared.days])[shared.day_index]
        return begun

    def _with_scenario(self, site: _Site, shared: _Month, counts: _Ints) -> _Ints:
        if self.scenario is None or self.scenario_start is None or self.scenario is Scenario.NEW_COUNTER:
            return counts
        age = np.array([(day - self.scenario_start).days for day in shared.days])[shared.day_index]
        begun = age >= 0
        # Thinning what passed, from a stream of its own, leaves everything before the start as it was.
        draw = rng(self.seed, _SCENARIO, site.index, shared.year, shared.month)
        match self.scenario:
            case Scenario.CITY_SHOCK:
                return np.where(begun, draw.binomial(counts, 0.6), counts)
            case Scenario.TREND:
                return counts + np.where(
                    begun, draw.binomial(counts, np.clip(0.005 * (age + 1), 0.0, 1.0)), 0
                )
            case Scenario.STRIKE:
                riding = begun & (age < _STRIKE_DAYS) & ~shared.weekend
                return counts + np.where(riding, draw.binomial(counts, 0.8), 0)
            case Scenario.STUCK_COUNTER if site.index == 0:
                return np.where(begun, max(round(site.level), 1), counts)
            case Scenario.HALVED_COUNTER if site.index == 0:
                return np.where(begun, draw.binomial(counts, 0.5), counts)
            case Scenario.DEAD_COUNTER if site.index == 0:
                return np.where(begun, 0, counts)
        return counts


def _months(first: date, last: date) -> Iterator[tuple[int, int]]:
    """UTC months that hold the local days."""
    start = hours_of_day(first)[0]
    end = hours_of_day(last)[-1]
    year, month = start.year, start.month
    while (year, month) <= (end.year, end.month):
        yield year, month
        year, month = _next(year, month)


def _next(year: int, month: int) -> tuple[int, int]:
    return (year + 1, 1) if month == 12 else (year, month + 1)


def _previous(year: int, month: int) -> tuple[int, int]:
    return (year - 1, 12) if month == 1 else (year, month - 1)


def _site(seed: int, index: int) -> _Site:
    site_number = index // 2
    place = rng(seed, _COUNTER, 0, site_number)
    # Draws in a fixed order: adding one at the end leaves the city as it is.
    latitude, longitude = place.uniform(48.825, 48.895), place.uniform(2.27, 2.40)
    kind = tuple(_Kind)[int(place.integers(3))] if site_number >= 3 else tuple(_Kind)[site_number % 3]
    level = float(np.exp(place.uniform(np.log(22.0), np.log(270.0))))
    axis = _DIRECTIONS[int(place.integers(len(_DIRECTIONS)))]
    house = int(place.integers(1, 160))
    own = rng(seed, _COUNTER, 1, index)
    tide = own.uniform(0.15, 0.55)
    return _Site(
        index=index,
        kind=kind,
        level=level * own.uniform(0.8, 1.2),
        morning=tide if index % 2 == 0 else -tide,
        growth=own.uniform(-0.02, 0.10),
        dispersion=own.uniform(40.0, 150.0),
        latitude=round(latitude, 5),
        longitude=round(longitude, 5),
        street=f"{house} {_STREETS[site_number % len(_STREETS)]}",
        direction=axis[index % 2],
        site_number=site_number,
    )


def _yearly_day(seed: int, site: _Site, year: int) -> date:
    """The spring day on which a counter is replaced or renamed in that year."""
    return date(year, 3, 1) + timedelta(days=int(rng(seed, _CALENDAR, site.index, year).integers(75)))


def _shared(seed: int, year: int, month: int) -> _Month:
    weather = month_weather(seed, year, month)
    service_date = weather.get_column("service_date")
    days = days_between(service_date[0], service_date[-1])
    day_index = (service_date.to_physical() - service_date.to_physical()[0]).to_numpy().astype(np.int64)
    local_hour = weather.get_column("local_hour").to_numpy().astype(np.int64)

    kinds = calendar_table(days)
    public = kinds.get_column("is_public_holiday").to_numpy()
    weekday = kinds.get_column("weekday").to_numpy()
    bridge = kinds.get_column("is_bridge_day").to_numpy()
    school = kinds.get_column("is_school_holiday").to_numpy()
    august = np.array([day.month == 8 for day in days])
    day_of_year = np.array([day.timetuple().tm_yday for day in days])
    season = 1.0 - 0.24 * np.cos(2 * np.pi * (day_of_year - 20) / 365.25)
    mood = shock(seed, _CITY_SHOCK, 0, days, memory=0.7, spread=0.15)

    workday = ~(public | (weekday >= 5))
    holiday = {
        _Kind.COMMUTER: np.where(workday & bridge, 0.6, 1.0) * np.where(workday & school, 0.80, 1.0),
        _Kind.LEISURE: np.where(workday & bridge, 1.35, 1.0) * np.where(workday & school, 1.22, 1.0),
        _Kind.MIXED: np.where(workday & bridge, 0.8, 1.0) * np.where(workday & school, 0.93, 1.0),
    }
    christmas = np.array([(day.month, day.day) in {(12, 25), (1, 1)} for day in days])
    common = season * np.exp(mood) * np.where(august, 0.82, 1.0) * np.where(christmas, 0.6, 1.0)
    return _Month(
        year=year,
        month=month,
        ts=weather.get_column("ts_utc").dt.epoch("s").to_numpy(),
        local_hour=local_hour,
        day_index=day_index,
        days=days,
        city=common[day_index] * traffic_factor(weather),
        holiday={kind: factor[day_index] for kind, factor in holiday.items()},
        weekend=~workday[day_index],
    )


def _profiles(site: _Site) -> tuple[_Floats, _Floats]:
    """Weekday and weekend profile of a counter; the weekday one has mean 1, and a tide by direction."""
    weekday, weekend = (np.array(profile, dtype=np.float64) for profile in site.kind.value)
    hour = np.arange(24)
    tide = np.exp(-(((hour - 8) / 2.0) ** 2)) - np.exp(-(((hour - 18) / 2.5) ** 2))
    return weekday / weekday.mean() * (1 + site.morning * tide), weekend / weekday.mean()


def _undisturbed(seed: int, site: _Site, shared: _Month) -> _Ints:
    """What passes the counter in each hour of the month, before anything breaks."""
    weekday, weekend = _profiles(site)
    profile = np.where(shared.weekend, weekend[shared.local_hour], weekday[shared.local_hour])
    own = shock(seed, _OWN_SHOCK, site.index, shared.days, memory=0.6, spread=0.09)[shared.day_index]
    years = (shared.year + (shared.month - 1) / 12) - 2023.5
    mean = (
        site.level
        * profile
        * shared.city
        * shared.holiday[site.kind]
        * np.exp(own)
        * (1 + site.growth) ** years
    )
    draw = rng(seed, _COUNTS, site.index, shared.year, shared.month)
    scatter = draw.gamma(site.dispersion, 1 / site.dispersion, len(mean))
    counts: _Ints = draw.poisson(mean * scatter)
    return counts


@dataclass(frozen=True)
class _Events:
    """What breaks at one counter in one month; masks by hour. `silent`: no row at all; `lost`: the outages of it."""

    silent: _Bools
    lost: _Bools
    zero: _Bools
    spikes: dict[int, int]
    corrected: _Bools


def _outage(seed: int, site: _Site, year: int, month: int) -> tuple[int, int, bool] | None:
    """The outage that begins in the month, if any: start (seconds), hours, missing rows rather than zeros."""
    draw = rng(seed, _EVENTS, 0, site.index, year, month)
    begin = int(draw.integers(672))
    length = int(np.clip(draw.lognormal(4.1, 1.3), 5, _MAX_OUTAGE_HOURS))
    missing, happens = bool(draw.random() < 0.5), bool(draw.random() < 0.10)
    start = int(datetime(year, month, 1, tzinfo=UTC).timestamp()) + 3600 * begin
    return (start, length, missing) if happens else None


def _events(seed: int, site: _Site, shared: _Month) -> _Events:
    size = len(shared.ts)
    silent, zero, corrected = np.zeros(size, bool), np.zeros(size, bool), np.zeros(size, bool)
    year, month = shared.year, shared.month
    for begun in (_previous(year, month), (year, month)):  # No outage is longer than a month.
        if outage := _outage(seed, site, *begun):
            start, length, missing = outage
            offset = (start - int(shared.ts[0])) // 3600
            mask = silent if missing else zero
            mask[max(offset, 0) : max(offset + length, 0)] = True
    draw = rng(seed, _EVENTS, 1, site.index, year, month)
    lost = silent.copy()
    silent |= draw.random(size) < 0.00015
    spikes = {}
    if draw.random() < 0.06:
        spikes[int(draw.integers(size))] = int(draw.choice([512, 5349, 8190]))
    if site.index % _ROLES == _ROLE_CORRECTED and draw.random() < 0.6:
        begin = int(draw.integers(size - 72))
        corrected[begin : begin + int(draw.integers(12, 72))] = True
    return _Events(silent, lost, zero, spikes, corrected)


def _merged_hours(shared: _Month) -> list[int]:
    """Hours that repeat the local hour before: in autumn the portal publishes both in the second's row."""
    same_hour = shared.local_hour[1:] == shared.local_hour[:-1]
    return [int(hour) + 1 for hour in np.flatnonzero(same_hour)]


def _published(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with publication columns: each day appears the morning after, corrections a week later."""
    first = rows.with_columns(
        hourly_count=pl.when("corrected").then(0.0).otherwise("hourly_count"),
        published=pl.col("service_date"),
        suffix=pl.lit(""),
    )
    again = rows.filter("corrected").with_columns(
        published=pl.col("service_date") + _CORRECTION_DELAY, suffix=pl.lit("-correction")
    )
    next_midnight = (
        pl.col("published").dt.offset_by("1d").cast(pl.Datetime("us")).dt.replace_time_zone(LOCAL_TZ)
    )
    return pl.concat([first, again]).with_columns(
        published_until=next_midnight.dt.convert_time_zone("UTC") - timedelta(hours=1),
        is_stray=pl.lit(False),
        source=pl.lit(SimulatorSource.name),
        source_file=pl.format("simulated-{}{}", pl.col("published").dt.to_string("%Y-%m-%d"), "suffix"),
    )


def _names(seed: int, site: _Site, years: range) -> pl.DataFrame:
    """Ids and names of a counter and the days [since, until) they hold; years tell how far it must reach."""
    role = site.index % _ROLES
    installed = date(2015, 1, 1) + timedelta(days=97 * (site.index + 1) % 2900)
    spans = [(year, _yearly_day(seed, site, year), _yearly_day(seed, site, year + 1)) for year in years]
    if role not in (_ROLE_RENAMED, _ROLE_REPLACED):
        spans = [(0, date.min, date.max)]
    rows = []
    for year, since, until in spans:
        site_name, channel = site.street, 1
        if role == _ROLE_RENAMED and year % 2 == 0:
            site_name = f"Face au {site.street}"
        if role == _ROLE_REPLACED:
            channel, installed, until = year - 2000, since, until - _GAP_BEFORE_REPLACEMENT
        site_id = str(900_000_000 + site.site_number)
        rows.append(
            {
                "index": site.index,
                "since": since,
                "until": until,
                "counter_id": f"{site_id}-{950_000_000 + 1000 * site.index + channel}",
                "counter_name": f"{site_name} {site.direction}",
                "site_id": site_id,
                "site_name": site_name,
                "latitude": site.latitude,
                "longitude": site.longitude,
                "installation_date": installed,
            }
        )
    return pl.DataFrame(rows)
