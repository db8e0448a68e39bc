"""What the service weighs: its packages on disk, seconds from start to ready, memory.

    python benchmarks/serving/footprint.py [--home DIR]

The packages are installed as serving/Dockerfile installs them, into a folder that is removed again, by the Python that
runs this; compiled bytecode is not counted. Start and memory are of one process with the city of the other benchmarks:
113 counters × 168 hours, and an earlier champion kept while a new one proves itself. Claims: packages under 560 MB,
ready within 3 s, under 400 MB of memory, no Dagster.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from city import Registry, make_city
from load import service

ROOT = Path(__file__).parents[2]


def packages(folder: Path) -> dict[str, float]:
    """Megabytes of each top-level package of the image's environment."""
    left_out = re.findall(r"--no-install-package \S+?(?=[ \"\\])", (ROOT / "serving/Dockerfile").read_text())
    flags = [word for flag in left_out for word in flag.split()]
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
            *flags,
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
        seconds, memory = [], []
        for number in range(3):
            began = time.perf_counter()
            with service(city, registry.url, folder / f"state{number}", poll_seconds="0.1") as running:
                seconds.append(time.perf_counter() - began)
                memory.append(running.memory / 1e6)
                with running.client() as client:
                    for version in (2, 1):
                        registry.promote(version)
                        while client.get("/model").json()["model"]["version"] != str(version):
                            time.sleep(0.05)
                memory.append(running.memory / 1e6)
        print(f"start to ready {', '.join(f'{value:.2f}' for value in seconds)} s")
        print(f"memory {memory[0]:.0f} MB after the start, {memory[1]:.0f} MB after two swaps")
    claims = {
        "packages under 560 MB": total < 560,
        "ready within 3 s": min(seconds) < 3,
        "under 400 MB": max(memory) < 400,
        "no Dagster": not any(name.startswith("dagster") for name in sizes),
    }
    if broken := [claim for claim, holds in claims.items() if not holds]:
        sys.exit(f"does not hold: {', '.join(broken)}")


if __name__ == "__main__":
    main()
