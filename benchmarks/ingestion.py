"""Ingesting a city's thirteen months from its portal: under 60 s on 2 cores, one day under 3 s, linear in the rows.

    python benchmarks/ingestion.py [--counters 113] [--months 13]

A local server speaks the portal's API over real HTTP, in a process of its own, and the real asset `raw_counts` loads
a simulated city from it into DuckDB: download, count, parse, hash, write, and Dagster's record of each partition. Then
the last day is asked for, new and twice unchanged, as it is every morning. At a quarter and a half of the months the
same shows how cost grows. The claims are about the asset's step; the run around it, with its data-quality checks and
the loading of the libraries they need, is shown beside it.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from datetime import date, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LIMIT_ALL, LIMIT_DAY = 60.0, 3.0
LAST = date(2024, 9, 30)


def serve(counters: int, first: date, last: date, pipe: Connection) -> None:
    """The portal: tells its address and rows, then serves until it is ended."""
    from bike_assets.sources.simulator import SimulatorSource
    from bike_assets_tests.exports import api_frame
    from bike_assets_tests.fakes.opendatasoft import FakePortal

    counts = SimulatorSource(counters=counters, first_day=first, last_day=last).read(first, last).counts
    counts = counts.sort("published_until").unique(["counter_id", "ts_utc"], keep="last").sort("ts_utc")
    with FakePortal(api_frame(counts)) as portal:
        pipe.send((portal.url, counts.height))
        with contextlib.suppress(EOFError):
            pipe.recv()


@contextlib.contextmanager
def portal(counters: int, first: date, last: date) -> Iterator[tuple[str, int]]:
    """Address and rows of a portal in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(counters, first, last, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def months_before(last: date, months: int) -> date:
    """First day of the month that lies so many months back, the last one counted."""
    number = last.year * 12 + last.month - months
    return date(number // 12, number % 12 + 1, 1)


def ingest(home: Path, url: str, first: date, last: date) -> tuple[float, float, float]:
    """Seconds of the asset's step over a range of days, and of the whole run with its checks; its processor seconds."""
    from bike_assets.build import build_defs
    from bike_assets.home import open_instance
    from bike_assets.runner import materialize
    from bike_assets.settings import load_settings

    settings = load_settings(home=home, source="paris", paris_portal=url)
    with open_instance(settings) as instance:
        started, processor = time.perf_counter(), time.process_time()
        outcome = materialize(build_defs(settings), instance, ["raw_counts"], days=(first, last))
    return outcome.seconds["raw_counts"], time.perf_counter() - started, time.process_time() - processor


def measure(
    counters: int, months: int
) -> tuple[int, tuple[float, float, float], list[tuple[float, float, float]]]:
    """Rows, seconds for all of them into an empty home, and seconds for the last day, three times."""
    first = months_before(LAST, months)
    with portal(counters, first, LAST) as (url, rows), tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        whole = ingest(home, url, first, LAST - timedelta(days=1))
        days = [ingest(home, url, LAST, LAST) for _ in range(3)]
        return rows, whole, days


def main() -> None:
    """Print seconds by size and exit with 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counters", type=int, default=113)
    parser.add_argument("--months", type=int, default=13)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("BIKE_ENV", "local")
    results = []
    for months in sorted({max(1, given.months // 4), max(1, given.months // 2), given.months}):
        rows, (whole, run, processor), days = measure(given.counters, months)
        results.append((rows, whole))
        print(
            f"{months:>3} months, {rows:>9,} rows: {whole:6.1f} s ({1e6 * whole / rows:.1f} s a million; "
            f"run {run:.1f} s, {processor:.1f} CPU s); one day: "
            f"{', '.join(f'{step:.2f} (run {run:.2f}, {cpu:.2f} CPU)' for step, run, cpu in days)} s",
            flush=True,
        )
    (fewest, least), (most, longest) = results[0], results[-1]
    print(f"{most / fewest:.1f} times the rows take {longest / least:.1f} times as long")
    if longest > LIMIT_ALL or max(step for step, _, _ in days) > LIMIT_DAY:
        sys.exit(f"more than {LIMIT_ALL:g} s for {given.months} months or {LIMIT_DAY:g} s for a day")


if __name__ == "__main__":
    main()
