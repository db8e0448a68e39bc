"""How many small changes of the decisions do their tests notice? Mutates them with Cosmic Ray, in a copy.

    uv run python benchmarks/mutation.py                  promotion and retraining
    uv run python benchmarks/mutation.py core/succession  another module, with the tests of its name

Cosmic Ray (https://cosmic-ray.readthedocs.io) is fetched by uv into an environment of its own. Prints the mutants that
every test let pass, and the share that was caught. Exits 1 where one survived that is not known to change nothing.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
COSMIC_RAY = ("uv", "tool", "run", "--from", "cosmic-ray==8.7.0", "cosmic-ray")
MODULES = ("core/promotion", "core/retraining")
CONFIG = """
[cosmic-ray]
module-path = "bike_assets/{module}.py"
timeout = 60.0
excluded-modules = []
test-command = "env PYTHONPATH={copy} {python} -B -m pytest -x -q -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"
"""

EQUIVALENT: dict[str, str] = {}
"""Changed lines that change nothing anybody can see, with the reason."""


def main() -> int:
    """Mutate each module and report."""
    missed = 0
    for module in sys.argv[1:] or MODULES:
        with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
            missed += _report(module, _mutate(module, Path(folder) / "copy"))
    return 1 if missed else 0


def _mutate(module: str, copy: Path) -> list[list[dict[str, Any]]]:
    ignored = shutil.ignore_patterns(".git", ".venv", ".bike*", "__pycache__", ".*_cache", "target")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    area, name = module.split("/")
    config = CONFIG.format(
        module=module, copy=copy, python=sys.executable, tests=f"bike_assets_tests/{area}/test_{name}.py"
    )
    (copy / "mutation.toml").write_text(config, encoding="utf-8")
    for command in (
        ["init", "mutation.toml", "mutation.sqlite"],
        ["exec", "mutation.toml", "mutation.sqlite"],
    ):
        subprocess.run([*COSMIC_RAY, *command], cwd=copy, check=True)
    dump = subprocess.run(
        [*COSMIC_RAY, "dump", "mutation.sqlite"], cwd=copy, check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in dump.stdout.splitlines() if line.strip()]


def _report(module: str, results: list[list[dict[str, Any]]]) -> int:
    survived = [str(outcome["diff"]) for _, outcome in results if outcome["test_outcome"] == "survived"]
    missed = [diff for diff in survived if not any(text in diff for text in EQUIVALENT)]
    for diff in missed:
        print(f"survived:\n{diff}\n")
    print(
        f"{module}: {len(results) - len(survived)} of {len(results)} mutants caught, "
        f"{len(survived) - len(missed)} change nothing, {len(missed)} missed"
    )
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
