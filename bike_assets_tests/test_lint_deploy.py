"""The linters of deployment files: clean as they stand, and each finds the fault that it is there for."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bike_assets.settings import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOKEN = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what git knows, with a history of its own."""
    for program in ("git", "uv", "npm", "kubectl"):
        if shutil.which(program) is None:
            pytest.skip(f"the linters are fetched and fed by {program}, which is not on PATH")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    # Only what the linters read, and enough of the rest: a search for secrets through everything takes its time.
    for name in listed.stdout.split("\0"):
        if name.startswith(
            (".ci/", ".github/", "deploy/", "serving/Dockerfile", "bike_assets/core/", "Makefile")
        ):
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    return subprocess.run(
        [str(folder / ".ci" / "lint-deploy")],
        env={**os.environ, "PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    """A change of one file of the copy."""

    def change(folder: Path) -> None:
        text = (folder / path).read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        (folder / path).write_text(text.replace(old, new), encoding="utf-8")

    return change


FAULTS: dict[str, Callable[[Path], None]] = {
    "actionlint": edit(".github/workflows/test.yml", "${{ matrix.python }}", "${{ matrix.pyhton }}"),
    "zizmor": edit(".github/workflows/check.yml", "@de0fac2e4500dabe0009e67214ff5f5447ce83dd", "@v6"),
    "hadolint": edit("serving/Dockerfile", "USER 10001:10001", "USER root"),
    "kubernetes-validate": edit(
        "deploy/kubernetes/base/serving/slot/serving.yaml", "maxUnavailable: 0", "maxUnavailabel: 0"
    ),
    "checkov": edit(
        "deploy/kubernetes/base/hardening.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
    ),
    "detect-secrets": lambda folder: (folder / "deploy" / "notes.txt").write_text(f"{TOKEN}\n") and None,
}


def test_what_stands_is_clean_and_each_linter_finds_the_fault_it_is_there_for(repository: Path) -> None:
    clean = lint(repository)
    assert clean.returncode == 0, clean.stdout + clean.stderr

    for plant in FAULTS.values():
        plant(repository)
    found = lint(repository)

    assert found.returncode != 0
    failed = {
        line.removesuffix(": failed") for line in found.stderr.splitlines() if line.endswith(": failed")
    }
    assert failed == set(FAULTS)
