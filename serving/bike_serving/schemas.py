"""Requests and answers of the API.

Belongs here: their fields, limits and examples. Does not belong here: anything that needs a loaded model.
"""

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictStr,
    model_validator,
)

MAX_COUNTERS = 200
MAX_HOURS = 168
MAX_COUNTER_ID = 100
MAX_BODY_BYTES = 256 * 1024
MAX_BULK_BYTES = 4 * 1024 * 1024
MAX_ROWS = 50_000
"""Rows that a caller may send to be forecast, scored or compared."""

MAX_RECORDS = 5_000
MAX_FEATURE_ROWS = 1_000
MAX_COUNT = 100_000
"""Bicycles that no hour of a counter exceeds."""

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


def moment_text(value: Any) -> Any:
    """A date or a timestamp with time zone, before it is read.

    Returns:
        A date for a day, else the text of the moment.
    """
    if isinstance(value, str) and _DATE.fullmatch(value):
        return date.fromisoformat(value)
    return value if value is None else _timestamp_text(value)


def _whole_hour(value: datetime) -> datetime:
    try:
        hour = value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the timestamp is out of range") from error
    if (hour.minute, hour.second, hour.microsecond) != (0, 0, 0):
        raise ValueError("the timestamp is not on the hour; forecasts are for whole hours")
    return hour


def date_text(value: Any) -> Any:
    """A date as text, before it is read: numbers and moments are none."""
    if value is not None and not (isinstance(value, str) and _DATE.fullmatch(value)):
        raise ValueError("give a date such as 2024-02-26")
    return value


def body_limit(path: str) -> int:
    """Bytes that requests of a path may send."""
    return MAX_BULK_BYTES if path.endswith(_BULK) else MAX_BODY_BYTES


CounterId = Annotated[StrictStr, Field(min_length=1, max_length=MAX_COUNTER_ID)]
TargetHour = Annotated[AwareDatetime, BeforeValidator(_timestamp_text), AfterValidator(_whole_hour)]


class WeatherHour(BaseModel):
    """What if the weather of this hour were expected to be so? What is left out stays as it was expected."""

    model_config = ConfigDict(extra="forbid")

    target_ts: TargetHour = Field(description="Start of the hour, with time zone")
    temperature_c: float | None = Field(default=None, ge=-50, le=60, description="Air temperature, °C")
    rain_mm: float | None = Field(default=None, ge=0, le=300, description="Rain in the hour, mm")
    wind_kmh: float | None = Field(default=None, ge=0, le=400, description="Wind at 10 m, km/h")


OptionalDate = Annotated[date | None, BeforeValidator(date_text)]


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
    issue_date: OptionalDate = Field(
        default=None, description="Local day the forecast is issued on; the newest by default"
    )
    affluence: StrictBool = Field(
        default=False, description="Whether each hour is busier than its counter's mean, and how surely"
    )
    features_used: StrictBool = Field(
        default=False,
        description=f"The model's inputs of each forecast; for at most {MAX_FEATURE_ROWS} of them",
    )
    weather: Annotated[list[WeatherHour], Field(max_length=MAX_HOURS)] = Field(
        default=[], description="What if: other weather than was expected, hour by hour"
    )


class CountRecord(BaseModel):
    """An hour of a counter in the portal's words. Its other columns may be there and say nothing here."""

    model_config = ConfigDict(extra="ignore")

    identifiant_du_compteur: CounterId | None = Field(default=None, description="The counter, or …")
    nom_du_compteur: Annotated[StrictStr, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="… its name, where only one counter has it"
    )
    date_et_heure_de_comptage: TargetHour

    @model_validator(mode="after")
    def _names_a_counter(self) -> Self:
        if self.identifiant_du_compteur is None and self.nom_du_compteur is None:
            raise ValueError("give identifiant_du_compteur or nom_du_compteur")
        return self


class RecordsRequest(BaseModel):
    """Forecasts for rows as the portal publishes them: the form of this service's predecessor.

    Each hour is answered from the newest forecast that has it: the coming seven days, or the days before as they were
    forecast on their own morning.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "records": [
                        {
                            "identifiant_du_compteur": "100003096-353242251",
                            "date_et_heure_de_comptage": "2024-02-26T08:00:00+01:00",
                        }
                    ],
                    "model_type": "rf",
                }
            ]
        },
    )

    records: Annotated[list[CountRecord], Field(min_length=1, max_length=MAX_RECORDS)]
    model_type: Literal["champion", "rf", "nn", "rf_class"] = Field(
        default="champion",
        description="rf_class asks for 1 (busier than the counter's mean) or 0. One model serves, whatever is asked "
        "for here: the answer names its family",
    )
    metric: Literal["r2", "rmse", "f1_score"] = Field(
        default="r2",
        description="By which the predecessor chose a model; here the champion is chosen already",
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
    model_version: str | None = Field(
        default=None,
        description="Only where an experiment shares the counters between two versions: which one forecast this",
    )


class ComputedForecast(Forecast):
    """A forecast with what was asked for beside it."""

    affluence: Literal["high", "low"] | None = Field(
        default=None,
        description="Whether more bicycles are expected than the counter's mean; null without a mean",
    )
    high_probability: float | None = Field(default=None, ge=0, le=1, description="That it will be high")
    threshold: float | None = Field(default=None, ge=0, description="The counter's mean, bicycles an hour")
    features_used: dict[str, float | None] | None = Field(default=None, description="Inputs of the model")


class PredictResponse(BaseModel):
    """The forecasts, counter by counter and hour by hour in the order asked for."""

    model: ModelIdentity
    issue_date: date
    forecasts: list[ComputedForecast]


class RecordsMetadata(BaseModel):
    """Which model answered."""

    run_id: str
    is_champion: bool
    model_type: str = Field(examples=["catboost"])
    version: str
    r2: float | None = Field(description="On the held-out days of its training, one day ahead")
    rmse: float | None


class RecordsResponse(BaseModel):
    """One prediction a record, in their order."""

    predictions: list[float | None] = Field(
        description="Bicycles; for rf_class 1, 0 or, without a mean, null"
    )
    label: list[Literal["forte", "faible"] | None] | None = Field(default=None, description="For rf_class")
    model_metadata: RecordsMetadata


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


class ModelSummary(BaseModel):
    """A registered version."""

    timestamp: datetime = Field(description="When it was registered")
    model_type: str | None = Field(examples=["catboost"])
    env: str
    test_mode: bool
    version: str
    run_id: str
    model_uri: str = Field(examples=["models:/bike-traffic/12"])
    is_champion: bool = Field(description="It holds the alias; what serves is in GET /v1/model")
    r2: float | None = Field(description="On the held-out days of its training, one day ahead")
    rmse: float | None


class CounterDescription(Counter):
    """A counter with what is known of its life."""

    first_seen: datetime = Field(description="Oldest counted hour, UTC")
    hours: int = Field(description="Counted hours")
    mean_hourly_count: float | None = Field(description="Bicycles an hour over its life")
    status: str | None = Field(
        description="active, new, silent or retired; null where the bundle does not tell"
    )


class CounterResponse(BaseModel):
    """One counter."""

    model: ModelIdentity
    counter: CounterDescription


class ForecastPoint(BaseModel):
    """A forecast at the counter's place (RFC 7946)."""

    type: Literal["Feature"]
    geometry: dict[str, Any] | None
    properties: dict[str, Any]


class ForecastCollection(BaseModel):
    """Forecasts as GeoJSON."""

    type: Literal["FeatureCollection"]
    issue_date: date
    model_version: str
    features: list[ForecastPoint]


class CountRow(BaseModel):
    """A counted hour."""

    model_config = ConfigDict(extra="forbid")

    counter_id: CounterId
    target_ts: TargetHour
    hourly_count: Annotated[float, Field(ge=0, le=MAX_COUNT, allow_inf_nan=False, strict=True)]


_ROW_EXAMPLE: dict[str, JsonValue] = {
    "counter_id": "100003096-353242251",
    "target_ts": "2024-02-25T08:00:00+01:00",
    "hourly_count": 178,
}


class EvaluateRequest(BaseModel):
    """Counted hours to hold forecasts against."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rows": [_ROW_EXAMPLE]}]})

    rows: Annotated[list[CountRow], Field(min_length=1, max_length=MAX_ROWS)]
    horizon: Annotated[int, Field(ge=1, le=7, strict=True)] = Field(
        default=1, description="Days ahead of the forecasts that are judged"
    )


class DriftRequest(BaseModel):
    """Counted hours of some days."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rows": [_ROW_EXAMPLE]}]})

    rows: Annotated[list[CountRow], Field(min_length=1, max_length=MAX_ROWS)]


class EvaluateResponse(BaseModel):
    """How good the forecasts were. Measures are defined in docs/reference.md; null where they are not defined."""

    model: ModelIdentity
    horizon: int
    rows: int = Field(description="Hours that were sent")
    unscored: int = Field(description="Those without a forecast: another counter, or too long ago")
    trained_until: date
    metrics: dict[str, float | None] | None = Field(description="Of hours after the training")
    metrics_in_training: dict[str, float | None] | None = Field(
        description="Of hours that the model was trained on: no measure of how good it is"
    )
    by_counter: list[dict[str, Any]]


class DriftSummary(BaseModel):
    """What was found over all counters; null where no counter could be tested."""

    drift_detected: bool | None
    drift_share: float | None = Field(ge=0, le=1, description="Drifted share of the tested counters")
    drifted_counters: list[str] = Field(description="Worst first")
    tested_counters: int
    reference_size: int
    current_size: int
    city_change: float | None = Field(
        description="Median change of level: 0.5 where half as many are counted"
    )


class DriftReference(BaseModel):
    """The days that were compared with: the same weekdays of the weeks before."""

    kind: str
    first: date
    last: date
    days: int


class DriftResponse(BaseModel):
    """Which counters moved apart from their city."""

    model: ModelIdentity
    drift_summary: DriftSummary
    reference: DriftReference
    counters: list[dict[str, Any]]


Version = Annotated[StrictStr, Field(pattern=r"^[1-9][0-9]{0,8}$", examples=["12"])]
Reason = Annotated[
    StrictStr, Field(min_length=3, max_length=500, description="Why; it is kept with the change")
]


class TrainRequest(BaseModel):
    """A training."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "new counters since spring"}]}
    )

    reason: Reason
    train_until: OptionalDate = Field(
        default=None, description="Last local day of counts that it sees; the newest complete one by default"
    )


class ChangeRequest(BaseModel):
    """A decision about a version."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"version": "12", "reason": "wrong since Monday"}]}
    )

    version: Version | None = Field(
        default=None, description="By default the one that is meant without saying so"
    )
    reason: Reason


class PromoteRequest(BaseModel):
    """A promotion: of a version, or of the one that a training registered."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"version": "13", "reason": "better in the backtest"}]},
    )

    version: Version | None = None
    run_id: Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    reason: Reason

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.version is None) == (self.run_id is None):
            raise ValueError("give either version or run_id")
        return self


class RunAccepted(BaseModel):
    """A job was started."""

    run_id: str = Field(examples=["0d3b2c1a-1f6e-4c55-9d58-3a8a3f6f0c11"])
    job: str = Field(examples=["retrain"])
    location: str = Field(examples=["/v1/runs/0d3b2c1a-1f6e-4c55-9d58-3a8a3f6f0c11"])


class RunState(BaseModel):
    """A run of a job; moments in seconds since 1970, null while it has not begun or ended."""

    run_id: str
    job: str
    status: str = Field(
        examples=["STARTED"], description="QUEUED, STARTING, STARTED, SUCCESS, FAILURE, CANCELED …"
    )
    started_at: float | None
    ended_at: float | None


class ServerMetadata(BaseModel):
    """Open Inference Protocol: the server."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Open Inference Protocol: the process lives."""

    live: bool


class Readiness(BaseModel):
    """Open Inference Protocol: a model is loaded."""

    ready: bool


class ModelReadiness(Readiness):
    """Open Inference Protocol: this model serves."""

    name: str


class TensorMetadata(BaseModel):
    """Open Inference Protocol: a tensor of a model; -1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Open Inference Protocol: a model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputTensor(BaseModel):
    """Open Inference Protocol: texts, one a row."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["counter_id", "target_ts"]
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=MAX_RECORDS, strict=True)]], Field(min_length=1, max_length=1)
    ]
    datatype: Literal["BYTES"]
    parameters: dict[str, Any] | None = None
    data: Annotated[
        list[Annotated[StrictStr, Field(max_length=MAX_COUNTER_ID)]], Field(max_length=MAX_RECORDS)
    ]


class OutputWish(BaseModel):
    """Open Inference Protocol: an output that is wanted."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["forecast", "lower_80", "upper_80", "lower_90", "upper_90"]
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    """Open Inference Protocol: rows to be forecast."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {
                            "name": "counter_id",
                            "shape": [1],
                            "datatype": "BYTES",
                            "data": ["100003096-353242251"],
                        },
                        {
                            "name": "target_ts",
                            "shape": [1],
                            "datatype": "BYTES",
                            "data": ["2024-02-26T08:00:00+01:00"],
                        },
                    ]
                }
            ]
        },
    )

    id: Annotated[StrictStr, Field(max_length=200)] | None = None
    parameters: dict[str, Any] | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=2, max_length=2)]
    outputs: Annotated[list[OutputWish], Field(max_length=5)] = []


class OutputTensor(BaseModel):
    """Open Inference Protocol: bicycles, one a row."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class InferResponse(BaseModel):
    """Open Inference Protocol: the forecasts."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


HorizonParameter = Annotated[int, Field(ge=1, le=7, description="Days ahead; for tables")]


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:bike-serving:unknown-counter"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no forecast for counter 42; GET /counters lists the counters"])
