"""The forms in which tables come and go: JSON, CSV, Parquet, Arrow and GeoJSON, chosen as HTTP has it.

Belongs here: which form a request asks for, and turning tables into bytes and back. Does not belong here: which columns
a route wants.

Parquet and Arrow of strangers are read by a process of its own (`bike_serving.reader`): a few compressed bytes can
claim gigabytes, and a damaged file can end the process that reads it.
"""

import asyncio
import io
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import polars as pl
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from bike_serving.forecasts import dumps
from bike_serving.problems import ProblemError
from bike_serving.schemas import MAX_ROWS

READ_SECONDS: Final = 20.0


class Form(StrEnum):
    """A form of a table; its value is what `?format=` calls it."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"
    GEOJSON = "geojson"


MEDIA_TYPES: Final[Mapping[Form, str]] = {
    Form.JSON: "application/json",
    Form.CSV: "text/csv",
    Form.PARQUET: "application/vnd.apache.parquet",
    Form.ARROW: "application/vnd.apache.arrow.stream",
    Form.GEOJSON: "application/geo+json",
}

TABLES: Final = (Form.JSON, Form.CSV, Form.PARQUET, Form.ARROW)
"""Forms in which rows come and go."""


def asked_form(request: Request, offered: Sequence[Form]) -> Form:
    """The form that a request wants: `?format=` before Accept; the first one where it does not say.

    Raises:
        ProblemError: 406, none of those offered.
    """
    if (named := request.query_params.get("format")) is not None:
        for form in offered:
            if form == named:
                return form
        raise _not_acceptable(offered)
    accept = request.headers.get("accept")
    if not accept:
        return offered[0]
    best, best_weight = None, 0.0
    for form in offered:
        if (weight := _weight(accept, MEDIA_TYPES[form])) > best_weight:
            best, best_weight = form, weight
    if best is None:
        raise _not_acceptable(offered)
    return best


def _not_acceptable(offered: Sequence[Form]) -> ProblemError:
    known = ", ".join(f"{form} ({MEDIA_TYPES[form]})" for form in offered)
    return ProblemError(406, "not-acceptable", f"this is given as {known}")


def _weight(accept: str, media_type: str) -> float:
    """How much a client wants a type: the q of its most precise match (RFC 9110, 12.5.1)."""
    family = media_type.split("/")[0]
    precision, weight = -1, 0.0
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        matched = {media_type: 2, f"{family}/*": 1, "*/*": 0}.get(name, -1)
        if matched > precision:
            precision, weight = matched, _quality(parameters)
    return weight


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def sent_form(request: Request) -> Form:
    """The form of a request's body; JSON where it does not say.

    Raises:
        ProblemError: 415, it is none that can be read.
    """
    content_type = request.headers.get("content-type", MEDIA_TYPES[Form.JSON]).split(";")[0].strip().lower()
    for form in TABLES:
        if MEDIA_TYPES[form] == content_type:
            return form
    known = ", ".join(MEDIA_TYPES[form] for form in TABLES)
    raise ProblemError(415, "unsupported-media-type", f"send one of {known}")


async def body_of(request: Request) -> bytes:
    """The whole body of a request.

    Raises:
        ProblemError: 400, the client left before it was complete.
    """
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ProblemError(400, "incomplete-body", "the body ended early") from error


async def read_table(body: bytes, form: Form, columns: Sequence[str]) -> pl.DataFrame:
    """The named columns of a table, those that it has; text and numbers as they stand, hours as text.

    Raises:
        ProblemError: 422, it cannot be read, or has more than MAX_ROWS rows.
    """
    if form is Form.CSV:
        frame = _read_csv(body, columns)
    else:
        frame = pl.read_ipc_stream(io.BytesIO(await _read_apart(body, form, columns)))
    if frame.height > MAX_ROWS:
        raise ProblemError(
            422, "too-many-rows", f"the table has more than {MAX_ROWS:,} rows; send it in parts"
        )
    if frame.is_empty():
        raise ProblemError(422, "no-rows", "the table has no rows")
    return frame


def _read_csv(body: bytes, columns: Sequence[str]) -> pl.DataFrame:
    head = body.split(b"\n", 1)[0]
    separator = ";" if head.count(b";") > head.count(b",") else ","
    try:
        frame = pl.read_csv(
            body, separator=separator, infer_schema=False, n_rows=MAX_ROWS + 1, truncate_ragged_lines=False
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise _unreadable(Form.CSV, str(error)) from error
    return frame.select(name for name in columns if name in frame.columns)


async def _read_apart(body: bytes, form: Form, columns: Sequence[str]) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bike_serving.reader", form, str(MAX_ROWS + 1), *columns),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(READ_SECONDS):
            out, _ = await process.communicate(body)
    except TimeoutError as error:
        raise _unreadable(form, "it takes too long to read") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0 or not out:
        raise _unreadable(form, "it is damaged, or far larger than it looks")
    return out


def _unreadable(form: Form, reason: str) -> ProblemError:
    reason = reason.splitlines()[0][:200] if reason else "it is damaged"
    return ProblemError(422, "unreadable-table", f"the body is no {form} table that can be read: {reason}")


def write_table(frame: pl.DataFrame, form: Form) -> bytes:
    """A table as bytes; hours as ISO 8601 with Z where the form has no type for them."""
    out = io.BytesIO()
    if form is Form.PARQUET:
        frame.write_parquet(out)
    elif form is Form.ARROW:
        frame.write_ipc_stream(out)
    elif form is Form.CSV:
        frame.with_columns(_TEXT_HOURS).write_csv(out)
    else:
        out.write(dumps(frame.with_columns(_TEXT_HOURS, _TEXT_DAYS).to_dicts()).encode())
    return out.getvalue()


_TEXT_HOURS: Final = pl.selectors.datetime().dt.strftime("%Y-%m-%dT%H:%M:%SZ")
_TEXT_DAYS: Final = pl.selectors.date().dt.strftime("%Y-%m-%d")


def geojson(features: Sequence[tuple[float | None, float | None, dict[str, Any]]], **members: Any) -> bytes:
    """A feature collection (RFC 7946) of points.

    Args:
        features: longitude, latitude (WGS 84; None where unknown) and properties of each.
        members: foreign members of the collection.
    """
    return dumps(
        {
            "type": "FeatureCollection",
            **members,
            "features": [
                {
                    "type": "Feature",
                    "geometry": None
                    if longitude is None or latitude is None
                    else {"type": "Point", "coordinates": [longitude, latitude]},
                    "properties": properties,
                }
                for longitude, latitude, properties in features
            ],
        }
    ).encode()


def answer(request: Request, body: bytes, form: Form, tag: str | None = None, **headers: str) -> Response:
    """A response in a form; with a tag one that a client may keep and ask about again (If-None-Match → 304)."""
    sent = {"Vary": "Accept", **headers}
    if tag is not None:
        sent |= {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
        known = [
            part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")
        ]
        if f'"{tag}"' in known or "*" in known:
            return Response(status_code=304, headers=sent)
    return Response(body, headers=sent, media_type=MEDIA_TYPES[form])
