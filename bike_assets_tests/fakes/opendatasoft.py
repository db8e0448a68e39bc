"""A fake Opendatasoft portal: the Explore API v2.1 with its limits, over real HTTP, and faults on request.

    python -m bike_assets_tests.fakes.opendatasoft --port 8999 --counters 113
    BIKE_PARIS_PORTAL=http://127.0.0.1:8999 uv run bike-assets ingest --source paris --home paris

It is filled by the simulator or by exports (`--data`). Belongs here: what the portal answers to the requests that
people make of it. Does not belong here: sockets (`service`).
"""

import argparse
import io
import re
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from bike_assets.sources import open_source
from bike_assets_tests.exports import api_frame
from bike_assets_tests.fakes.service import Answer, FakeService, Faults

DATASET = "comptage-velo-donnees-compteurs"
MAX_LIMIT, MAX_DEPTH = 100, 10_000

EVERY_FAULT = ("429", "500", "cut", "truncated", "slow", "wrong_count", "short_export")
"""All faults that pass: `wrong_count` counts one record too many, `short_export` leaves one out."""

_BASE = "/api/explore/v2.1/catalog/datasets/"
_CONDITION = re.compile(r"""^(\w+)\s*(>=|<=|!=|>|<|=)\s*(date'[^']+'|"[^"]*"|'[^']*'|-?\d+(?:\.\d+)?)$""")
_AGGREGATE = re.compile(r"^(min|max|count)\((\w+|\*)\) as (\w+)$")


class FakePortal(FakeService):
    """A portal with one data set.

    Attributes:
        records: the data set, columns as `exports.api_frame` has them; may be replaced while it serves.
        quota: calls that are left, None for no limit; `resets` is what it then says of the time.
        key: the only API key it takes, None for none needed.
    """

    def __init__(
        self, records: pl.DataFrame, *, faults: Faults | None = None, port: int = 0, dataset: str = DATASET
    ) -> None:
        """A portal that does not listen yet."""
        super().__init__(faults, port)
        self.records = records
        self.dataset = dataset
        self.quota: int | None = None
        self.resets = "2030-01-01T00:00:00+00:00"
        self.key: str | None = None

    def respond(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        """The answer of the real portal."""
        if self.key and headers.get("Authorization") != f"Apikey {self.key}":
            return _error(401, "AuthenticationError", "The API key is not valid")
        quota = {}
        if self.quota is not None:
            self.quota -= 1
            quota = {
                "X-RateLimit-Limit": "5000",
                "X-RateLimit-Remaining": str(max(self.quota, 0)),
                "X-RateLimit-Reset": self.resets,
            }
            if self.quota < 0:
                text = {
                    "errorcode": 10002,
                    "reset_time": self.resets,
                    "error": "Too many requests on the domain",
                }
                return Answer.json(text, 429, **quota)
        try:
            answer = self._route(path, query)
        except _RefusedError as refused:
            return refused.answer
        return Answer(answer.status, answer.content_type, answer.body, quota)

    def spoil(self, kind: str, path: str, query: dict[str, str], answer: Answer) -> Answer:
        """Wrong numbers of rows."""
        if kind == "wrong_count" and path.endswith("/records") and "select" not in query:
            found, total = self._page(query)
            return Answer.json({"total_count": total + 1, "results": found})
        if kind == "short_export" and path.endswith("/exports/parquet"):
            return _exported(self._selected(query).head(-1), "parquet")
        return answer

    def _route(self, path: str, query: dict[str, str]) -> Answer:
        if not path.startswith(_BASE):
            raise _RefusedError(404, "NotFound", "The requested URL was not found")
        dataset, *rest = path.removeprefix(_BASE).strip("/").split("/")
        if dataset != self.dataset:
            raise _RefusedError(404, "UnknownDatasetError", f"The dataset {dataset!r} doesn't exist.")
        match rest:
            case []:
                return Answer.json(self._description())
            case ["records"]:
                results, total = self._page(query)
                return Answer.json({"total_count": total, "results": results})
            case ["exports", ("parquet" | "csv" | "json") as kind]:
                offset, limit = _number(query, "offset", 0), _number(query, "limit", -1)
                if offset and offset + max(limit, 0) > MAX_DEPTH:
                    raise _too_deep(offset, limit)
                frame = self._selected(query).slice(offset)
                return _exported(frame if limit < 0 else frame.head(limit), kind)
        raise _RefusedError(404, "NotFound", "The requested URL was not found")

    def _description(self) -> dict[str, Any]:
        newest = self.records.get_column("date").max()
        return {
            "dataset_id": self.dataset,
            "has_records": True,
            "fields": [{"name": name, "label": name} for name in self.records.columns],
            "metas": {"default": {"records_count": self.records.height, "modified": str(newest)}},
        }

    def _page(self, query: dict[str, str]) -> tuple[list[dict[str, Any]], int]:
        offset, limit = _number(query, "offset", 0), _number(query, "limit", 10)
        if not -1 <= limit <= MAX_LIMIT:
            raise _RefusedError(
                400,
                "InvalidRESTParameterError",
                f"Invalid value for limit API parameter: {limit} was found but -1 <= limit <= {MAX_LIMIT} is expected.",
            )
        if offset + limit > MAX_DEPTH:
            raise _too_deep(offset, limit)
        frame = self._selected(query)
        if select := query.get("select"):
            return [_aggregated(frame, select)], 1
        if order := query.get("order_by"):
            name, *direction = order.split()
            frame = frame.sort(name, descending=direction == ["DESC"] or direction == ["desc"])
        return _records(frame.slice(offset, limit)), frame.height

    def _selected(self, query: dict[str, str]) -> pl.DataFrame:
        where = query.get("where", "")
        conditions = [self._condition(part) for part in re.split(r"\s+and\s+", where, flags=re.I) if part]
        return self.records.filter(*conditions) if conditions else self.records

    def _condition(self, text: str) -> pl.Expr:
        found = _CONDITION.match(text.strip())
        if found is None or found[1] not in self.records.columns:
            raise _RefusedError(400, "ODSQLError", f"ODSQL query is malformed: {text}")
        column, literal = pl.col(found[1]), found[3]
        value: Any = literal.strip("\"'")
        if literal.startswith("date'"):
            value = pl.lit(datetime.fromisoformat(literal[5:-1])).dt.convert_time_zone("UTC")
        elif literal[0] not in "\"'":
            value = float(literal)
        match found[2]:
            case ">=":
                return column >= value
            case "<=":
                return column <= value
            case ">":
                return column > value
            case "<":
                return column < value
            case "!=":
                return column != value
        return column == value


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.answer = _error(status, code, message)


def _error(status: int, code: str, message: str) -> Answer:
    return Answer.json({"error_code": code, "message": message}, status)


def _too_deep(offset: int, limit: int) -> _RefusedError:
    return _RefusedError(
        400,
        "InvalidRESTParameterError",
        f"Invalid value for offset + limit API parameter: {offset + limit} was found but offset + limit <= "
        f"{MAX_DEPTH} is expected.",
    )


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise _RefusedError(400, "InvalidRESTParameterError", f"{name} is not a number") from None


def _aggregated(frame: pl.DataFrame, select: str) -> dict[str, Any]:
    row = {}
    for part in select.split(","):
        found = _AGGREGATE.match(part.strip())
        if found is None:
            raise _RefusedError(400, "ODSQLError", f"ODSQL query is malformed: {part}")
        values = frame.get_column("date" if found[2] == "*" else found[2])
        value = {"min": values.min, "max": values.max, "count": values.len}[found[1]]()
        row[found[3]] = value.isoformat() if isinstance(value, datetime) else value
    return row


def _records(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return frame.with_columns(pl.col("date").dt.to_string("iso:strict")).to_dicts()


def _exported(frame: pl.DataFrame, kind: str) -> Answer:
    buffer = io.BytesIO()
    match kind:
        case "parquet":
            frame.write_parquet(buffer, compression="snappy")
            return Answer(200, "application/vnd.apache.parquet", buffer.getvalue())
        case "csv":
            place = pl.col("coordinates").struct
            flat = frame.with_columns(
                pl.concat_str(place.field("lat"), place.field("lon"), separator=","),
                pl.col("date").dt.to_string("iso:strict"),
            )
            flat.write_csv(buffer, separator=";", include_bom=True)
            return Answer(200, "text/csv; charset=utf-8", buffer.getvalue())
    return Answer.json(_records(frame))


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8999)
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="exports to serve, not the simulator"
    )
    parser.add_argument("--counters", type=int, default=12, help="of the simulated city")
    parser.add_argument("--seed", type=int, default=7, help="of the simulated city")
    parser.add_argument("--first-day", type=date.fromisoformat, default=date(2024, 1, 1))
    parser.add_argument("--last-day", type=date.fromisoformat, default=date(2024, 12, 31))
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that meet a fault")
    parser.add_argument("--fault-seed", type=int, default=0)
    parser.add_argument("--quota", type=int, help="calls until it says that the quota is spent")
    given = parser.parse_args()
    source = (
        open_source("archive", data=given.data)
        if given.data
        else open_source(
            seed=given.seed, counters=given.counters, first_day=given.first_day, last_day=given.last_day
        )
    )
    counts = source.read(*source.span()).counts.unique(["counter_id", "ts_utc"], keep="last").sort("ts_utc")
    faults = Faults(given.faults, given.fault_seed, EVERY_FAULT)
    portal = FakePortal(api_frame(counts), faults=faults, port=given.port)
    portal.quota = given.quota
    print(f"{counts.height:,} records of {DATASET} at {portal.url}", flush=True)  # noqa: T201
    portal.serve_forever()


if __name__ == "__main__":
    main()
