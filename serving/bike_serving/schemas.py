"""Requests and answers of the API.

Belongs here: their fields, limits and examples. Does not belong here: anything that needs a loaded model.
"""

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictStr

MAX_COUNTERS = 200
MAX_HOURS = 168
MAX_COUNTER_ID = 100
MAX_BODY_BYTES = 256 * 1024
MAX_BULK_BYTES = 4 * 1024 * 1024
MAX_ROWS = 50_000
"""Rows that a caller may send to be forecast, scored or compared."""

_BULK = ("/predict", "/evaluate", "/drift", "/monitor")

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIMESTAMP = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?(?P<zone>Z|z|[+-]\d{2}:?\d{2})?")


def _timestamp_text(value: Any) -> Any:
    match = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("give an ISO 8601 timestamp such as 2024-02-26T08:00:00+01:00")
    if match["zone"] is None:
        raise ValueError("the timestamp has no time zone; add one, as in 2024-02-26T08:00:00+01:00")
    return value


def _whole_hour(value: datetime) -> datetime:
    try:
        hour = value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the timestamp is out of range") from error
    if (hour.minute, hour.second, hour.microsecond) != (0, 0, 0):
        raise ValueError("the timestamp is not on the hour; forecasts are for whole hours")
    return hour


def _date_text(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and _DATE.fullmatch(value)):
        raise ValueError("give a date such as 2024-02-26")
    return value


def body_limit(path: str) -> int:
    """Bytes that requests of a path may send."""
    return MAX_BULK_BYTES if path.endswith(_BULK) else MAX_BODY_BYTES


CounterId = Annotated[StrictStr, Field(min_length=1, max_length=MAX_COUNTER_ID)]
TargetHour = Annotated[AwareDatetime, BeforeValidator(_timestamp_text), AfterValidator(_whole_hour)]


class PredictRequest(BaseModel):
    """Which forecasts are wanted: every counter at every hour. Repetitions are answered once."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "counter_ids": ["100003096-353242251"],
                    "target_hours": ["2024-02-26T08:00:00+01:00", "2024-02-26T09:00:00+01:00"],
                }
            ]
        },
    )

    counter_ids: Annotated[list[CounterId], Field(min_length=1, max_length=MAX_COUNTERS)] = Field(
        description="Counters as GET /counters lists them"
    )
    target_hours: Annotated[list[TargetHour], Field(min_length=1, max_length=MAX_HOURS)] = Field(
        description="Starts of hours, with time zone, within the 7 days from the issue date"
    )
    issue_date: Annotated[date | None, BeforeValidator(_date_text)] = Field(
        default=None, description="Local day the forecast is issued on; the newest by default"
    )


class ModelIdentity(BaseModel):
    """The version that answered; all of one answer is from this one."""

    name: str = Field(examples=["bike-traffic"])
    version: str = Field(examples=["12"])
    run_id: str = Field(examples=["5f1c9a3b7d2e4f60a1b2c3d4e5f60718"])
    bundle_id: str = Field(examples=["1bb9677e59c38d95c694ea33252bc3db"])


class Forecast(BaseModel):
    """Bicycles expected in one hour at one counter, with the ends of the 80 % and 90 % intervals."""

    counter_id: str = Field(examples=["100003096-353242251"])
    target_ts: datetime = Field(description="Start of the hour, UTC", examples=["2024-02-26T07:00:00Z"])
    horizon: int = Field(description="Days ahead: 1 is the issue date itself", ge=1, le=7, examples=[1])
    forecast: float = Field(ge=0, examples=[183.25])
    lower_80: float = Field(ge=0, examples=[151.0])
    upper_80: float = Field(ge=0, examples=[212.5])
    lower_90: float = Field(ge=0, examples=[139.75])
    upper_90: float = Field(ge=0, examples=[228.0])
    basis: Literal["history", "neighbours"] = Field(
        description="neighbours: the counter has too little history of its own, and intervals are wider"
    )


class PredictResponse(BaseModel):
    """The forecasts, counter by counter and hour by hour in the order asked for."""

    model: ModelIdentity
    issue_date: date
    forecasts: list[Forecast]


class Counter(BaseModel):
    """A counter the champion knows."""

    counter_id: str = Field(examples=["100003096-353242251"])
    counter_name: str | None = Field(examples=["Quai d'Orsay E-O"])
    site_name: str | None = Field(examples=["Quai d'Orsay"])
    latitude: float | None = Field(description="Degrees north, WGS 84", examples=[48.8629])
    longitude: float | None = Field(description="Degrees east, WGS 84", examples=[2.3137])
    last_seen: datetime = Field(description="Newest counted hour, UTC", examples=["2024-02-25T22:00:00Z"])
    has_forecast: bool = Field(description="False when its counts are too old to forecast from")


class CountersResponse(BaseModel):
    """All counters of the champion."""

    model: ModelIdentity
    counters: list[Counter]


class Poll(BaseModel):
    """The last look at the registry."""

    at: datetime | None
    error: str | None = Field(description="Why the champion it names is not the one that serves")


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """`ok`, or `degraded` when the service answers but cannot follow the registry."""

    status: Literal["ok", "degraded"]
    reason: str | None
    model: ModelIdentity
    issue_date: date
    bundle_age_seconds: float
    loaded_at: datetime
    last_poll: Poll


class DateRange(BaseModel):
    """Both ends included."""

    first: date
    last: date


class HourRange(BaseModel):
    """Both ends included, UTC."""

    first: datetime
    last: datetime


class ModelDescription(BaseModel):
    """What is loaded."""

    model: ModelIdentity
    git_commit: str
    data_hash: str
    trained_until: date
    created_at: datetime
    loaded_at: datetime
    horizons: list[int]
    issue_dates: DateRange = Field(description="Issue dates that can be asked for")
    window: HourRange = Field(description="Hours of the newest issue date")
    counters: int
    metrics: dict[str, Any]


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:bike-serving:unknown-counter"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no forecast for counter 42; GET /counters lists the counters"])
