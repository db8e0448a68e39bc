"""Seconds until Dagster has the code location, and what of them is importing: the claim is under 6 on 2 cores.

    python benchmarks/load_time.py [--runs 5]

Each run is a fresh interpreter. The first one may make dbt's manifest and compile modules; it is shown and left
out. Processor time is shown beside wall time, because on a busy machine only the first says something.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

LIMIT_SECONDS = 6.0


def load(module: str, home: str) -> tuple[float, float]:
    """Wall and processor seconds of a fresh interpreter that imports a module."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import {module}"],
        env=os.environ | {"BIKE_HOME": home, "BIKE_ENV": "local"},
        check=True,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the median of each module's runs; exit with 1 when the claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    medians = {}
    with tempfile.TemporaryDirectory() as home:
        print(f"first load: {load('bike_assets.definitions', home)[0]:.2f} s")
        for module in ("dagster", "bike_assets.core", "bike_assets.definitions"):
            measured = [load(module, home) for _ in range(runs)]
            medians[module] = statistics.median(wall for wall, _ in measured)
            processor = statistics.median(cpu for _, cpu in measured)
            print(f"import {module}: {medians[module]:.2f} s ({processor:.2f} s of processor time)")
    if medians["bike_assets.definitions"] > LIMIT_SECONDS:
        sys.exit(f"the code location takes more than {LIMIT_SECONDS:g} s to load")


if __name__ == "__main__":
    main()
