"""What the service weighs: its packages on disk, seconds from start to ready, memory.

    python benchmarks/serving/footprint.py [--home DIR]

The packages are installed as serving/Dockerfile installs them, into a folder that is removed again, by the Python that
runs this; compiled bytecode is not counted. Start and memory are of one worker with the city of the other benchmarks:
113 counters × 168 hours, and an earlier champion kept while a new one proves itself. Memory is that of the worker and
of the process that loads champions for it, and of a worker that had to compute a vintage besides. Claims: packages
under 560 MB, ready within 3 s, under 400 MB of memory, no Dagster.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from city import Registry, make_city
from load import service

ROOT = Path(__file__).parents[2]


def packages(folder: Path) -> dict[str, float]:
    """Megabytes of each top-level package of the image's environment."""
    subprocess.run(
        [
            "uv",
            "sync",
            "--quiet",
            "--locked",
            "--no-dev",
            "--package",
            "bike-serving",
            "--no-editable",
        ],
        cwd=ROOT,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder), "UV_PYTHON": sys.executable},
        check=True,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    return {
        entry.name: sum(
            file.stat().st_size
            for file in ([entry] if entry.is_file() else entry.rglob("*"))
            if file.is_file() and file.suffix != ".pyc"
        )
        / 1e6
        for entry in site.iterdir()
    }


def main() -> None:
    """Measure, print, exit with 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, help="keeps the city for the next run")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sizes = packages(folder / "env")
        total = sum(sizes.values())
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
        print(f"packages {total:.0f} MB: {', '.join(f'{name} {size:.0f}' for name, size in largest)}")
        city = make_city(arguments.home or folder / "city")
        registry = Registry(city)
        stack.callback(registry.close)
        seconds, started, swapping, asked = [], [], [], []
        for number in range(3):
            began = time.perf_counter()
            with service(city, registry.url, folder / f"state{number}", poll_seconds="0.1") as running:
                seconds.append(time.perf_counter() - began)
                started.append(running.memory / 1e6)
                with running.client() as client:
                    for version in (2, 3, 1):
                        registry.promote(version)
                        while client.get("/model").json()["model"]["version"] != str(version):
                            swapping.append(running.memory / 1e6)
                            time.sleep(0.02)
                    client.get(f"/forecast?as_of={city.issue_date - timedelta(days=7)}").raise_for_status()
                asked.append(running.memory / 1e6)
        print(f"start to ready {', '.join(f'{value:.2f}' for value in seconds)} s")
        print(
            f"memory {max(started):.0f} MB after the start, at most {max(swapping):.0f} MB in three swaps, "
            f"{max(asked):.0f} MB after an older vintage was asked for"
        )
    claims = {
        "packages under 560 MB": total < 560,
        "ready within 3 s": min(seconds) < 3,
        "under 400 MB": max(*started, *swapping, *asked) < 400,
        "no Dagster": not any(name.startswith("dagster") for name in sizes),
    }
    if broken := [claim for claim, holds in claims.items() if not holds]:
        sys.exit(f"does not hold: {', '.join(broken)}")


if __name__ == "__main__":
    main()
