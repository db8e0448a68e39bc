"""The drift report for people: Evidently's HTML page, a compact JSON file, and the summary decisions rest on.

Belongs here: everything that touches Evidently. Does not belong here: which days and columns to compare
(`bike_assets.core.drift`), what follows from drift (`bike_assets.core.retraining`), Dagster.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from bike_assets.core.drift import DRIFT_THRESHOLD, DriftSummary, summarise_drift
from bike_assets.core.errors import ContractError

if TYPE_CHECKING:
    import pandas as pd

METHOD = "wasserstein"
"""One method for all columns: Evidently's default changes with the number of rows, its direction too."""


def drift_report(
    *,
    current: pl.DataFrame,
    reference: pl.DataFrame,
    columns: Sequence[str],
    html_path: Path,
    json_path: Path,
    sample_rows: int = 5000,
    seed: int = 20_240_101,
    threshold: float = DRIFT_THRESHOLD,
) -> DriftSummary:
    """Compare two periods column by column and write the report.

    A column's score is the Wasserstein distance of the two samples in standard deviations of the reference;
    it drifts from `threshold` on. Both periods are sampled without replacement to at most `sample_rows`
    rows, so the report takes seconds whatever the size. NaN and infinite values count as missing.

    Args:
        current: the period to judge.
        reference: the period it is judged against.
        columns: numeric columns to test.
        html_path: where the self-contained HTML page is written (about 4 MB).
        json_path: where the summary is written as JSON (a few kB).
        sample_rows: rows kept of each period.
        seed: of the samples.
        threshold: distance from which a column drifts.

    Returns:
        The summary. Columns without any value in one of the periods are listed as untestable.

    Raises:
        ContractError: a period is empty, a column is missing from either or not numeric, or no column can be
            tested.
    """
    columns = list(dict.fromkeys(columns))
    _check_columns(current, "current", columns)
    _check_columns(reference, "reference", columns)
    now = _sample(current, columns, sample_rows, seed)
    before = _sample(reference, columns, sample_rows, seed + 1)
    filled = [period.count() for period in (now, before)]
    untestable = [name for name in columns if any(count[name].item() == 0 for count in filled)]
    tested = [name for name in columns if name not in untestable]
    if not tested:
        raise ContractError(
            "drift report: no column holds values in both periods; choose other days "
            "or materialise their features"
        )
    scores, html = _run(_pandas(now, tested), _pandas(before, tested), tested, threshold)
    summary = summarise_drift(
        scores,
        n_reference=reference.height,
        n_current=current.height,
        threshold=threshold,
        method=METHOD,
        untestable=untestable,
    )
    write_atomically(html_path, html)
    write_atomically(json_path, summary_json(summary))
    return summary


def summary_json(summary: DriftSummary) -> str:
    """The summary as one JSON object."""
    return json.dumps(
        {**asdict(summary), "share": summary.share}, ensure_ascii=False, allow_nan=False, default=str
    )


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp files are private; a report is read by the web server too.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _check_columns(frame: pl.DataFrame, which: str, columns: list[str]) -> None:
    # Evidently drops a column that is absent from current without a word: missing would read as not drifted.
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ContractError(
            f"drift report: column {', '.join(missing)} is missing from the {which} period; "
            "materialise its features with the present code"
        )
    odd = [name for name in columns if not frame.schema[name].is_numeric()]
    if odd:
        raise ContractError(
            f"drift report: column {', '.join(odd)} of the {which} period is not numeric; leave it out"
        )
    if frame.is_empty():
        raise ContractError(f"drift report: the {which} period has no row; choose days with data")


def _sample(frame: pl.DataFrame, columns: list[str], rows: int, seed: int) -> pl.DataFrame:
    if frame.height > rows:
        frame = frame.sample(rows, seed=seed)
    numbers = frame.select(pl.col(columns).cast(pl.Float64))
    return numbers.select(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in columns
    )


def _pandas(frame: pl.DataFrame, columns: list[str]) -> "pd.DataFrame":
    import pandas as pd

    # Plain NumPy columns: Evidently divides by zero on Arrow extension arrays.
    return pd.DataFrame({name: frame.get_column(name).to_numpy() for name in columns})


def _run(
    current: "pd.DataFrame", reference: "pd.DataFrame", columns: list[str], threshold: float
) -> tuple[dict[str, float], str]:
    with warnings.catch_warnings():
        # Evidently 0.7 imports litestar's and NumPy's old names; nothing a user could do about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        definition = DataDefinition(numerical_columns=columns)
        snapshot = Report(
            [ValueDrift(column=name, method=METHOD, threshold=threshold) for name in columns],
            include_tests=True,
        ).run(
            current_data=Dataset.from_pandas(current, data_definition=definition),
            reference_data=Dataset.from_pandas(reference, data_definition=definition),
        )
        html: str = snapshot.get_html_str(as_iframe=False)
        metrics: list[dict[str, Any]] = snapshot.dict()["metrics"]
    scores = {metric["config"]["column"]: float(metric["value"]) for metric in metrics}
    if list(scores) != columns:
        raise ContractError(
            f"drift report: Evidently scored {', '.join(scores) or 'nothing'} instead of {', '.join(columns)}"
        )
    return scores, html
