"""`POST /predict`: forecasts for counters and hours that the caller names.

Belongs here: the three forms of the question (counters × hours, records as the portal has them, a table of rows) and
what may be asked for beside a forecast. The commonest one has a shorter way (`bike_serving.fast_path`). Does not belong
here: loading models, and whole vintages (`bike_serving.routes.forecasts`).
"""

from codecs import BOM_UTF8
from datetime import date
from typing import Any

import msgspec
import polars as pl
from fastapi import APIRouter, Request, Response

from bike_serving.champion import Champion
from bike_serving.forecasts import OutsideWindowError, UnknownCountersError, dumps, iso
from bike_serving.media import (
    MEDIA_TYPES,
    TABLES,
    Form,
    answer,
    asked_form,
    body_of,
    read_table,
    sent_form,
    write_table,
)
from bike_serving.problems import ProblemError, some
from bike_serving.routes.common import (
    NOT_LOADED,
    Current,
    DateParameter,
    FormParameter,
    compute,
    json_body,
    json_response,
    metrics_of,
    parse,
    problems,
)
from bike_serving.schemas import (
    MAX_FEATURE_ROWS,
    CountRecord,
    PredictRequest,
    PredictResponse,
    RecordsRequest,
    RecordsResponse,
)
from bike_serving.vintages import (
    COLUMNS,
    HOUR,
    KEYS,
    add_affluence,
    add_features,
    identity_headers,
    issue_date_of,
    local_day,
    of_counters,
    of_rows,
    product,
    require_columns,
    utc_hours,
)

router = APIRouter()


class _Kind(msgspec.Struct):
    """What tells one form of a JSON body from the other."""

    records: msgspec.Raw = msgspec.Raw(b"")


_kind = msgspec.json.Decoder(_Kind).decode


@router.post(
    "/predict",
    response_model=PredictResponse | RecordsResponse,
    openapi_extra=json_body(PredictRequest, RecordsRequest, bulk="columns counter_id and target_ts"),
    responses={
        200: {
            "description": "The forecasts. As a table: a row for each of them",
            "content": {MEDIA_TYPES[form]: {} for form in (Form.CSV, Form.PARQUET, Form.ARROW)},
        },
        **problems(
            s400="The body is not JSON",
            s404="A counter is unknown",
            s406="The forms asked for are not given",
            s408="The body did not arrive in time",
            s413="The body is too large",
            s415="The body's form is not read",
            s422="A field is wrong, or an hour or issue date cannot be forecast",
            **NOT_LOADED,
        ),
    },
)
async def predict(
    champion: Current,
    request: Request,
    issue_date: DateParameter = None,
    format: FormParameter = None,  # noqa: A002, ARG001
) -> Response:
    """Forecasts with intervals for each counter at each hour.

    A table (CSV, Parquet, Arrow) is answered row by row, and `issue_date` stands in the query. `?format=` or Accept
    choose the form of the answer, whatever that of the question.
    """
    sent, wanted = sent_form(request), asked_form(request, TABLES)
    body = await body_of(request)
    if sent is not Form.JSON:
        rows = await read_table(body, sent, KEYS)
        frame = await compute(request, _table, champion, rows, issue_date)
        return _tabular(request, champion, frame, wanted, issue_date)
    if _has_records(body):
        records = parse(RecordsRequest, body)
        answered = await compute(request, _records, champion, records)
        metrics_of(request).count_forecasts(
            champion.model_type, champion.ref.version, len(records.records), computed=True
        )
        return json_response(dumps(answered).encode())
    question = parse(PredictRequest, body)
    day = question.issue_date or issue_date
    if wanted is Form.JSON and not (question.affluence or question.features_used or question.weather):
        return await _look_up(request, champion, question, day)
    frame = await compute(request, _extended, champion, question, day)
    if question.features_used and wanted is Form.CSV:
        frame = frame.unnest("features_used", separator=".")
    return _tabular(request, champion, frame, wanted, day)


def _has_records(body: bytes) -> bool:
    try:
        return bytes(_kind(body.removeprefix(BOM_UTF8)).records) != b""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


async def _look_up(
    request: Request, champion: Champion, question: PredictRequest, asked: date | None
) -> Response:
    day = issue_date_of(champion, asked)
    table = champion.ready_table(day)
    computed = table is None
    if table is None:
        table = await compute(request, champion.table, day)
    try:
        found = champion.answer(table, question.counter_ids, question.target_hours)
    except UnknownCountersError as error:
        raise ProblemError(
            404,
            "unknown-counter",
            f"no forecast for counter {some(error.counter_ids)}; GET /v1/counters lists the counters",
            counter_ids=error.counter_ids,
        ) from error
    except OutsideWindowError as error:
        first, last = map(iso, error.window)
        raise ProblemError(
            422,
            "outside-window",
            f"target_hours: {some([iso(hour) for hour in error.hours])} is outside the forecast issued on "
            f"{table.issue_date}, whose hours are {first} to {last}",
            window={"first": first, "last": last},
        ) from error
    metrics_of(request).count_forecasts(
        champion.model_type, champion.ref.version, found.forecasts, computed=computed
    )
    return json_response(found.body)


def _table(champion: Champion, rows: pl.DataFrame, asked: date | None) -> pl.DataFrame:
    day = issue_date_of(champion, asked)
    rows = utc_hours(require_columns(rows, KEYS), "target_ts")
    return of_rows(of_counters(champion, None, day), rows, day)


def _extended(champion: Champion, question: PredictRequest, asked: date | None) -> pl.DataFrame:
    """The forecasts with everything that was asked for beside them."""
    day = issue_date_of(champion, asked)
    wanted = product(question.counter_ids, question.target_hours)
    if question.features_used and wanted.height > MAX_FEATURE_ROWS:
        raise ProblemError(
            422,
            "too-many-rows",
            f"features_used is given for at most {MAX_FEATURE_ROWS:,} forecasts a request",
        )
    if question.features_used and question.weather:
        raise ProblemError(
            422,
            "invalid-request",
            "features_used: leave weather out; they are of the weather that was expected",
        )
    vintage = _what_if(champion, question, day) if question.weather else of_counters(champion, None, day)
    rows = of_rows(vintage, wanted, day)
    if question.affluence:
        rows = add_affluence(champion, rows)
    return add_features(champion, rows, day) if question.features_used else rows


def _what_if(champion: Champion, question: PredictRequest, day: date) -> pl.DataFrame:
    told = {hour.target_ts: (hour.temperature_c, hour.rain_mm, hour.wind_kmh) for hour in question.weather}
    if len(told) < len(question.weather):
        raise ProblemError(422, "invalid-request", "weather: an hour is given twice")
    names = ("temperature_c", "rain_mm", "wind_kmh")
    weather = pl.DataFrame(
        [(hour, *values) for hour, values in told.items()],
        schema={"ts_utc": HOUR, **dict.fromkeys(names, pl.Float64)},
        orient="row",
    )
    return champion.bundle.what_if(day, weather).select(COLUMNS)


def _tabular(
    request: Request, champion: Champion, frame: pl.DataFrame, form: Form, asked: date | None
) -> Response:
    day = issue_date_of(champion, asked)
    metrics_of(request).count_forecasts(
        champion.model_type, champion.ref.version, frame.height, computed=True
    )
    body = write_table(frame, form)
    if form is Form.JSON:
        head = f'{{"model":{champion.ref_json},"issue_date":"{day}","forecasts":'
        body = head.encode() + body + b"}"
    return answer(request, body, form, **identity_headers(champion, day))


def _records(champion: Champion, question: RecordsRequest) -> dict[str, Any]:
    """The predecessor's answer to the predecessor's question."""
    ids = _ids_by_name(champion)
    counter_ids = [_counter_of(record, place, ids) for place, record in enumerate(question.records)]
    hours = [record.date_et_heure_de_comptage for record in question.records]
    wanted = pl.DataFrame(
        {"counter_id": counter_ids, "target_ts": hours}, schema_overrides={"target_ts": HOUR}
    )
    newest = champion.bundle.issue_date
    # Of the days before the newest issue date each hour is answered as it was forecast on its own morning.
    days = wanted.select(pl.min_horizontal(local_day(champion, "target_ts"), pl.lit(newest)).alias("day"))
    parts = []
    for (day,), part in (
        wanted.with_columns(days["day"]).with_row_index("place").partition_by("day", as_dict=True).items()
    ):
        assert isinstance(day, date)  # noqa: S101
        vintage = of_counters(champion, None, issue_date_of(champion, day))
        parts.append(of_rows(vintage, part, day).with_columns(part["place"]))
    rows = add_affluence(champion, pl.concat(parts).sort("place"))
    held_out = champion.bundle.info.metrics.get("1", {})
    answered: dict[str, Any] = {
        "predictions": rows["forecast"].to_list(),
        "model_metadata": {
            "run_id": champion.ref.run_id,
            "is_champion": True,
            "model_type": champion.model_type,
            "version": champion.ref.version,
            "r2": held_out.get("r2"),
            "rmse": held_out.get("rmse"),
        },
    }
    if question.model_type == "rf_class":
        labels = {"high": "forte", "low": "faible", None: None}
        answered["predictions"] = [{"high": 1, "low": 0, None: None}[value] for value in rows["affluence"]]
        answered["label"] = [labels[value] for value in rows["affluence"]]
    return answered


def _ids_by_name(champion: Champion) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for counter_id, name in champion.bundle.counters.select("counter_id", "counter_name").iter_rows():
        if name is not None:
            found.setdefault(name, []).append(counter_id)
    return found


def _counter_of(record: CountRecord, place: int, ids: dict[str, list[str]]) -> str:
    if record.identifiant_du_compteur is not None:
        return record.identifiant_du_compteur
    named = ids.get(record.nom_du_compteur or "", [])
    if len(named) == 1:
        return named[0]
    if not named:
        raise ProblemError(
            404,
            "unknown-counter",
            f"records.{place}.nom_du_compteur: no counter has this name; see GET /v1/counters",
        )
    raise ProblemError(
        422,
        "ambiguous-name",
        f"records.{place}.nom_du_compteur: counters {some(named)} have this name; give identifiant_du_compteur",
    )
