"""How many small changes of the decisions do their tests notice?

    uv run --with cosmic-ray==8.7.0 python benchmarks/mutation.py                  promotion and retraining
    uv run --with cosmic-ray==8.7.0 python benchmarks/mutation.py core/succession  another module, tests of its name

Cosmic Ray (https://cosmic-ray.readthedocs.io) says how a line may be wrong: every number, comparison and operator. Each
mutant meets the module's tests in a fork of this process, which has its libraries loaded: its own runner, which starts
an interpreter a mutant, takes ten times as long. Prints the mutants that every test let pass, and the share that was
caught; exits 1 where one survived that is not known to change nothing.
"""

import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = ("core/promotion", "core/retraining")
SECONDS = 60
"""A mutant that takes longer has made something endless, which is noticed."""

EQUIVALENT = {
    "_EXACT_DAYS = 14  # 2^14 sign patterns are cheap; beyond that they are drawn": "where drawing begins",
    "    seed: int = 20_240_101": "other draws, as good",
    "        patterns = np.arange(2<<differences.size)[:, None] >> np.arange(differences.size)": "all of them twice",
    "    return float((1 + (signs @ differences >= bound).sum()) / (1 | _DRAWS))": "20,001 as well",
    "    return float((1 + (signs @ differences >= bound).sum()) / (1 ^ _DRAWS))": "20,001 as well",
    "        if self.total_squares <= 0:": "it is never below 0",
    "        if len(set(dates)) != len(dates):": "a set never has more",
    "    /,": "callers name what comes after it",
    '            decision is "retrain_proactive"': "words of the source are one object",
    '            decision <= "retrain_proactive"': "the other word that comes here is greater",
    # An annotation inside a function is never evaluated.
    "    p_value: float | None = None": "annotation",
    "    reasons: list[str] = []": "annotation",
}
"""Lines whose mutants, or mutants whose lines, change nothing that anybody can see, with the reason."""


def main() -> int:
    """Mutate each module and report."""
    sys.path.insert(0, str(REPOSITORY))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = (
        "1"  # a mutant takes tenths of a second, plugins take seconds
    )
    for library in ("numpy", "polars", "pytest"):
        importlib.import_module(library)
    return 1 if sum(_try(module) for module in sys.argv[1:] or MODULES) else 0


def _try(module: str) -> int:
    original = (REPOSITORY / "bike_assets" / f"{module}.py").read_text(encoding="utf-8")
    if not _noticed(module, original + "\nraise SystemError\n") or _noticed(module, original):
        sys.exit(f"{module}: its tests do not pass, or do not load it")
    caught, known, missed = 0, 0, 0
    for name, mutant in _mutants(original):
        if _noticed(module, mutant):
            caught += 1
            print(f"\r{module}: {caught} caught", end="", file=sys.stderr, flush=True)
            continue
        lines = list(difflib.unified_diff(original.splitlines(), mutant.splitlines(), n=0, lineterm=""))[3:]
        if any(line[1:] in EQUIVALENT for line in lines):
            known += 1
            continue
        missed += 1
        print(f"survived {name}:", *lines, sep="\n  ", flush=True)
    total = caught + known + missed
    print(
        f"{module}: {caught} of {total} mutants caught, {known} change nothing, {missed} missed", flush=True
    )
    return missed


def _mutants(original: str) -> Iterator[tuple[str, str]]:
    """Every way in which Cosmic Ray makes the module wrong, once."""
    mutating = importlib.import_module("cosmic_ray.mutating")
    plugins = importlib.import_module("cosmic_ray.plugins")
    seen = {original}
    for name in sorted(plugins.operator_names()):
        operator = plugins.get_operator(name)
        if operator.arguments():
            continue  # those that put names in the place of others need to be told which
        for occurrence in range(10_000):
            mutant = mutating.mutate_code(original, operator(), occurrence)
            if mutant is None:
                break
            if mutant not in seen:
                seen.add(mutant)
                yield name, mutant


def _noticed(module: str, code: str) -> bool:
    """Whether the module's tests fail with this code in its place."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os._exit(_run(module, code))
    _, status = os.waitpid(child, 0)
    return not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0)


def _run(module: str, code: str) -> int:
    pytest = importlib.import_module("pytest")
    area, name = module.split("/")
    full = f"bike_assets.{area}.{name}"
    found = types.ModuleType(full)
    found.__file__ = str(REPOSITORY / "bike_assets" / f"{module}.py")
    sys.modules[full] = found
    tests = str(REPOSITORY / "bike_assets_tests" / area / f"test_{name}.py")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(code, found.__file__, "exec"), found.__dict__)  # noqa: S102  that is what a mutant is for
            setattr(importlib.import_module(f"bike_assets.{area}"), name, found)
            return int(
                pytest.main(
                    ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "--no-header", tests]
                )
            )
    except BaseException:
        return 1


if __name__ == "__main__":
    sys.exit(main())
