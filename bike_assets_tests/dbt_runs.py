"""dbt as a process of its own over a test's warehouse, for tests of SQL that need no Dagster.

Belongs here: starting dbt. Does not belong here: what is built, and what it should hold.
"""

import os
import subprocess
import sys
from pathlib import Path

from bike_assets.settings import REPOSITORY

PROJECT = REPOSITORY / "dbt_project"


def dbt(command: str, *arguments: str, warehouse: Path, target: str = "local", **environment: str) -> Path:
    """Run dbt; fails with what it said. Returns the folder of its artifacts, beside the warehouse."""
    artifacts = warehouse.parent / f"dbt-{target}"
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "dbt"), "--quiet", "--no-use-colors", command, *arguments),
            *("--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT), "--target", target),
            *("--target-path", str(artifacts), "--log-path", str(artifacts)),
        ],
        env=os.environ
        | {"BIKE_WAREHOUSE": str(warehouse), "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
        | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return artifacts
