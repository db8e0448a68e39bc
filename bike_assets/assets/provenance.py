"""Which code made an artefact."""

import os
import subprocess

from bike_assets.settings import REPOSITORY


def git_commit() -> str:
    """The commit of the running code, with `-dirty` where files were changed; `unknown` outside a checkout.

    Images have no `.git`: their build sets BIKE_GIT_COMMIT.
    """
    if commit := os.environ.get("BIKE_GIT_COMMIT"):
        return commit
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"
