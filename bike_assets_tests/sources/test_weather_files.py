"""Observed weather in files: names, types and times as people have them, and refusals in one line."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from bike_assets.core.errors import PermanentError
from bike_assets.sources.weather import WEATHER_SCHEMA, open_weather

DAY = date(2024, 10, 27)
START = datetime(2024, 10, 26, 22, tzinfo=UTC)


def hours() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "ts_utc": [START + timedelta(hours=hour) for hour in range(26)],
            "temp": [10.0 + hour for hour in range(26)],
            "rain": [0.0] * 25 + [1.5],
        }
    )


def read(path: Path) -> pl.DataFrame:
    return open_weather("file", data=[path]).read(DAY, DAY).rows


def test_parquet_csv_and_times_without_zone_give_the_same_25_hours(tmp_path: Path) -> None:
    hours().write_parquet(tmp_path / "a.parquet")
    hours().with_columns(pl.col("ts_utc").dt.replace_time_zone(None)).write_parquet(tmp_path / "b.parquet")
    hours().write_csv(tmp_path / "c.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    hours().write_csv(tmp_path / "d.csv", datetime_format="%Y-%m-%d %H:%M:%S")

    found = [read(tmp_path / name) for name in ("a.parquet", "b.parquet", "c.csv", "d.csv")]

    assert all(rows.equals(found[0]) for rows in found)
    assert found[0].schema == WEATHER_SCHEMA
    assert found[0].get_column("ts_utc").to_list() == [START + timedelta(hours=hour) for hour in range(25)]
    assert found[0].get_column("temperature_c").to_list() == [10.0 + hour for hour in range(25)]
    assert found[0].get_column("wind_kmh").null_count() == 25
    assert set(found[0].get_column("kind")) == {"observed"}


def test_where_files_overlap_the_later_one_is_right(tmp_path: Path) -> None:
    hours().write_parquet(tmp_path / "a.parquet")
    hours().head(1).with_columns(temp=pl.lit(-5.0)).write_parquet(tmp_path / "b.parquet")

    rows = open_weather("file", data=[tmp_path / "a.parquet", tmp_path / "b.parquet"]).read(DAY, DAY).rows

    assert rows.sort("ts_utc").get_column("temperature_c").to_list()[:2] == [-5.0, 11.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has columns a, b; weather needs ts_utc"),
        ("ts_utc,temp\nyesterday,2\n", "times are ISO 8601 in UTC"),
        ("ts_utc,temp\n2024-10-27T00:00:00Z,cold\n", "the rest are numbers"),
    ],
)
def test_what_is_no_weather_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "w.csv").write_text(text)

    with pytest.raises(PermanentError, match=r"w\.csv") as caught:
        read(tmp_path / "w.csv")

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quantity_that_is_not_there_is_told(tmp_path: Path) -> None:
    hours().rename({"temp": "degrees"}).write_parquet(tmp_path / "a.parquet")

    batch = open_weather("file", data=[tmp_path / "a.parquet"]).read(DAY, DAY)

    told = [fault.line() for fault in batch.faults]
    assert len(told) == 2
    assert "a.parquet: has no temperature_c (its columns are ts_utc, degrees, rain)" in told[0]
    assert "has no wind_kmh" in told[1]
    assert batch.rows.get_column("rain_mm").null_count() == 0


def test_no_file_is_refused() -> None:
    with pytest.raises(PermanentError, match="BIKE_WEATHER_DATA"):
        open_weather("file").read(DAY, DAY)
