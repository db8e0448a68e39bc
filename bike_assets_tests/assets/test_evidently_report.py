"""The drift report: what drifts, what does not, and every trap of the library underneath."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bike_assets.assets import evidently_report
from bike_assets.assets.evidently_report import drift_report, write_atomically
from bike_assets.core.drift import DriftSummary
from bike_assets.core.errors import ContractError

COLUMNS = ["level", "lag", "count"]


def frame(rows: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "level": generator.normal(100 + shift, 20, rows) * scale,
            "lag": generator.normal(50, 10, rows).astype(np.float32),
            "count": generator.poisson(30, rows),
            "name": ["c"] * rows,
        }
    )


def report(folder: Path, current: pl.DataFrame, reference: pl.DataFrame, columns: list[str]) -> DriftSummary:
    return drift_report(
        current=current,
        reference=reference,
        columns=columns,
        html_path=folder / "deep" / "report.html",
        json_path=folder / "deep" / "report.json",
    )


def test_only_the_shifted_column_drifts_and_by_how_much(tmp_path: Path) -> None:
    summary = report(tmp_path, frame(20_000, 1, shift=10), frame(30_000, 2), COLUMNS)
    assert summary.drifted == ("level",)
    assert summary.share == pytest.approx(1 / 3)
    # A shift by half a standard deviation is a distance of 0.5.
    assert summary.scores["level"] == pytest.approx(0.5, abs=0.06)
    assert (summary.n_current, summary.n_reference) == (20_000, 30_000)


def test_the_distance_is_in_deviations_of_the_reference(tmp_path: Path) -> None:
    # What a swap of the two would turn round: the distance is the same, its unit is not.
    narrow, wide = frame(5_000, 1), frame(5_000, 2, scale=3.0)
    outward = report(tmp_path, wide, narrow, ["level"]).scores["level"]
    inward = report(tmp_path, narrow, wide, ["level"]).scores["level"]
    assert outward == pytest.approx(10, rel=0.05)
    assert inward == pytest.approx(10 / 3, rel=0.05)


def test_the_same_distribution_drifts_nowhere_and_repeats_itself(tmp_path: Path) -> None:
    first = report(tmp_path, frame(8_000, 1), frame(9_000, 2), COLUMNS)
    assert first.drifted == ()
    assert first.share == 0
    assert report(tmp_path, frame(8_000, 1), frame(9_000, 2), COLUMNS) == first


def test_the_files_are_whole_and_say_the_same(tmp_path: Path) -> None:
    summary = report(tmp_path, frame(500, 1, shift=40), frame(500, 2), COLUMNS)
    found = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert found["share"] == summary.share
    assert found["drifted"] == ["level"]
    assert found["scores"] == summary.scores
    html = (tmp_path / "deep" / "report.html").read_text()
    assert html.rstrip().endswith("</html>")
    assert "<script src=" not in html.replace('<script src=""', "")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["report.html", "report.json"]


def test_a_column_missing_from_either_period_is_refused(tmp_path: Path) -> None:
    # Evidently alone would report it as not drifted.
    good = frame(100, 1)
    with pytest.raises(ContractError, match="lag is missing from the current"):
        report(tmp_path, good.drop("lag"), good, COLUMNS)
    with pytest.raises(ContractError, match="level is missing from the reference"):
        report(tmp_path, good, good.drop("level"), COLUMNS)
    assert not list(tmp_path.iterdir())


def test_text_and_empty_periods_are_refused(tmp_path: Path) -> None:
    good = frame(100, 1)
    with pytest.raises(ContractError, match="name of the current period is not numeric"):
        report(tmp_path, good, good, ["name"])
    with pytest.raises(ContractError, match="reference period has no row"):
        report(tmp_path, good, good.head(0), COLUMNS)
    with pytest.raises(ContractError, match="current period has no row"):
        report(tmp_path, good.head(0), good, COLUMNS)


def test_columns_without_values_are_listed_and_not_counted(tmp_path: Path) -> None:
    empty = frame(300, 1).with_columns(level=pl.lit(None, pl.Float64), lag=pl.lit(float("nan"), pl.Float32))
    summary = report(tmp_path, empty, frame(300, 2), COLUMNS)
    assert summary.untestable == ("level", "lag")
    assert summary.columns == ("count",)
    assert summary.share == 0
    with pytest.raises(ContractError, match="no column holds values"):
        report(tmp_path, empty, frame(300, 2), ["level"])


def test_nulls_and_infinities_do_not_enter_the_distance(tmp_path: Path) -> None:
    current = frame(4_000, 1).with_columns(
        level=pl.when(pl.int_range(pl.len()) % 4 == 0)
        .then(float("inf"))
        .when(pl.int_range(pl.len()) % 4 == 1)
        .then(None)
        .otherwise("level")
    )
    assert report(tmp_path, current, frame(4_000, 2), COLUMNS).drifted == ()


def test_the_threshold_itself_drifts(tmp_path: Path) -> None:
    reference = pl.DataFrame({"x": [0.0, 2.0] * 50})
    arguments = {"columns": ["x"], "html_path": tmp_path / "a.html", "json_path": tmp_path / "a.json"}
    current = reference.with_columns(pl.col("x") + 0.25)
    at = drift_report(current=current, reference=reference, threshold=0.25, **arguments)  # type: ignore[arg-type]
    above = drift_report(current=current, reference=reference, threshold=0.26, **arguments)  # type: ignore[arg-type]
    assert (at.drifted, above.drifted) == (("x",), ())


def test_large_periods_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = evidently_report._run

    def spy(current, reference, columns, threshold):  # type: ignore[no-untyped-def]
        seen.extend([len(current), len(reference)])
        return run(current, reference, columns, threshold)

    monkeypatch.setattr(evidently_report, "_run", spy)
    summary = report(tmp_path, frame(200_000, 1), frame(90, 2), COLUMNS)
    assert seen == [5_000, 90]
    assert summary.n_current == 200_000


def test_reference_and_current_cannot_be_given_by_position(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        drift_report(frame(9, 1), frame(9, 2), COLUMNS, tmp_path, tmp_path)  # type: ignore[misc]


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(evidently_report.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
