"""Do the tests fail when the thing they test is broken? Plants one fault at a time in a copy and runs its tests.

    uv run python benchmarks/deliberate_faults.py            every fault
    uv run python benchmarks/deliberate_faults.py leak dedup  those whose name contains a word

A fault is caught when the tests, which pass on the untouched copy, fail with it. Exits 1 if one is missed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Fault:
    """One line of the product made wrong: in `file`, `right` becomes `wrong`; `tests` must notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = (
    Fault(
        "target shifted by an hour",
        "bike_assets/core/model.py",
        'target_ts="ts_utc", hourly_count',
        'target_ts=pl.col("ts_utc") + timedelta(hours=1), hourly_count',
        "bike_assets_tests/core/test_model.py",
    ),
    Fault(
        "a day of future counts leaks into features",
        "bike_assets/core/features.py",
        "(day - axis.days[0]).days for day in issues",
        "(day - axis.days[0]).days + 1 for day in issues",
        "bike_assets_tests/core/test_features.py",
    ),
    Fault(
        "the issue date leaks into features through the partitions",
        "bike_assets/partitions.py",
        "end_offset=-1",
        "end_offset=0",
        "bike_assets_tests/test_partitions.py",
    ),
    Fault(
        "deduplication dropped",
        "dbt_project/models/intermediate/int_counts_latest.sql",
        "where publication_rank = 1",
        "",
        "bike_assets_tests/assets/test_transformation.py",
    ),
    Fault(
        "the earlier export wins",
        "dbt_project/models/intermediate/int_counts_latest.sql",
        "order by published_until desc",
        "order by published_until asc",
        "bike_assets_tests/assets/test_transformation.py",
    ),
    Fault(
        "outages look ahead",
        "dbt_project/models/marts/cleaned_counts.sql",
        "range between 2 preceding and current row",
        "range between 2 preceding and 2 following",
        "bike_assets_tests/assets/test_transformation.py",
    ),
    Fault(
        "reference and current swapped in drift",
        "bike_assets/assets/evidently_report.py",
        "_run(_pandas(now, tested), _pandas(before, tested)",
        "_run(_pandas(before, tested), _pandas(now, tested)",
        "bike_assets_tests/assets/test_evidently_report.py",
    ),
    Fault(
        "the merged autumn hour counts twice",
        "dbt_project/models/intermediate/int_counts_split.sql",
        "floor(latest.hourly_count / 2) end",
        "latest.hourly_count end",
        "bike_assets_tests/assets/test_transformation.py",
    ),
    Fault(
        "a model below the floor is promoted",
        "bike_assets/core/promotion.py",
        "if floor_r2 < policy.floor_r2:",
        "if floor_r2 < 0:",
        "bike_assets_tests/core/test_promotion.py",
    ),
    Fault(
        "gain compared the wrong way round",
        "bike_assets/core/promotion.py",
        "round(new_r2 - old_r2, 9)",
        "round(old_r2 - new_r2, 9)",
        "bike_assets_tests/core/test_promotion.py",
    ),
    Fault(
        "retraining threshold moved",
        "bike_assets/core/retraining.py",
        "r2_critical: float = 0.65",
        "r2_critical: float = 0.66",
        "bike_assets_tests/core/test_retraining.py",
    ),
    Fault(
        "skill without the baseline",
        "bike_assets/core/metrics.py",
        "1.0 - rmse / rmse_baseline",
        "1.0 - rmse",
        "bike_assets_tests/core/test_metrics.py",
    ),
    Fault(
        "a partition is not emptied before it is written",
        "bike_assets/resources/warehouse.py",
        "service_date BETWEEN ? AND ?",
        "service_date BETWEEN ? AND ? AND FALSE",
        "bike_assets_tests/resources/test_warehouse.py",
    ),
    Fault(
        "the signature of a bundle is not looked at",
        "bike_assets/core/bundle.py",
        "except InvalidSignature",
        "except ZeroDivisionError",
        "bike_assets_tests/core/test_bundle.py",
    ),
    Fault(
        "a text in counts passes for a missing count",
        "bike_assets/sources/export_rows.py",
        "unreadable = counts.is_null() & ~absent",
        "unreadable = counts.is_null() & absent",
        "bike_assets_tests/sources/test_archive_faults.py",
    ),
    Fault(
        "every decision starts a training",
        "bike_assets/sensors/retraining.py",
        "if retrain is None or not retrain.value:",
        "if retrain is None:",
        "bike_assets_tests/sensors/test_retraining.py",
    ),
)


def main() -> int:
    """Plant every fault that was asked for and print one line for each."""
    words = sys.argv[1:]
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    if not chosen:
        print(f"no fault's name contains {' or '.join(words)}", file=sys.stderr)
        return 2
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_tree(copy)
        sound: dict[str, bool] = {}
        for fault in chosen:
            started = time.monotonic()
            if fault.tests not in sound:
                sound[fault.tests] = passes(copy, fault.tests)
            path = copy / fault.file
            text = path.read_text(encoding="utf-8")
            if text.count(fault.right) < 1:
                verdict = f"NOT PLANTED: {fault.file} no longer says {fault.right!r}"
            elif not sound[fault.tests]:
                verdict = f"NO PROOF: {fault.tests} fails without any fault"
            else:
                path.write_text(text.replace(fault.right, fault.wrong, 1), encoding="utf-8")
                verdict = "MISSED" if passes(copy, fault.tests) else "caught"
                path.write_text(text, encoding="utf-8")
            missed += verdict != "caught"
            print(f"{verdict:8} {fault.name} ({fault.tests}, {time.monotonic() - started:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults caught")
    return int(missed > 0)


def copy_tree(target: Path) -> None:
    """The files git knows, as they stand in the work tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True
    )
    for name in listed.stdout.split("\0"):
        source = REPOSITORY / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def passes(copy: Path, tests: str) -> bool:
    """Whether these tests pass on the copy. Its modules come before the installed ones."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", tests],
        cwd=copy,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(copy), str(copy / "serving")]),
            # A fault of the same length, planted within the second, would be hidden by a compiled file.
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
