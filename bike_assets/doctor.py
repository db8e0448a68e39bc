"""`bike-assets doctor`: every connection, permission and version that the platform needs, tried for real.

Belongs here: trying, and what to do where it fails. Does not belong here: watching what runs (`bike_assets.sensors`).
Nothing is changed: what a check writes to prove that it may, it takes away again.
"""

import json
import os
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final, Literal

from packaging.requirements import Requirement

from bike_assets.core.errors import PermanentError, TransientError
from bike_assets.settings import Settings

Outcome = Literal["ok", "warn", "fail"]

SECONDS: Final = 45.0
"""How long a check may take. Clients try for minutes, which is right at night and wrong for someone who asks."""

_THREAD: Final = "doctor:"
"""What the names of the checks' threads begin with."""

FREE_GIGABYTES: Final = 2.0
"""Below this much room in the home a training may find the disk full."""


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do where that is not well."""

    check: str
    outcome: Outcome
    found: str
    remedy: str = ""


class _IllError(Exception):
    """A check that found something: what, what to do, and how bad it is."""

    def __init__(self, found: str, remedy: str, outcome: Outcome = "fail") -> None:
        super().__init__(found)
        self.remedy, self.outcome = remedy, outcome


def diagnose(
    settings: Settings, seconds: float = SECONDS, say: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Every check, one after the other; none keeps the others from being made.

    Args:
        settings: what to check against.
        seconds: after which a check that has no answer is given up.
        say: is told which check comes next.
    """
    checks: dict[str, tuple[Callable[[Settings], str], str]] = {
        "packages": (_packages, "uv sync --locked"),
        "home": (_home, "make the folder writable, or name another with BIKE_HOME"),
        "warehouse": (
            _warehouse,
            "give the identity the roles of docs/production.md, and check BIKE_BIGQUERY_PROJECT",
        ),
        "mlflow": (_mlflow, "start the server, and check BIKE_MLFLOW_TRACKING_URI"),
        "dagster": (_dagster, "check DAGSTER_HOME and the database its dagster.yaml names"),
        "bundles": (_bundles, "check BIKE_BUNDLES_URL"),
        "signing key": (_signing_key, "chmod 600 the key, or restore it from a copy"),
        "source": (_source, "check BIKE_SOURCE and what belongs to it in docs/sources.md"),
        "weather": (_weather, "check BIKE_WEATHER and what belongs to it in docs/sources.md"),
        "service": (_service, "start the REST service, and check BIKE_SERVING_URL"),
        "alerts": (
            _alerts,
            "set BIKE_ALERT_DISCORD_WEBHOOK or BIKE_ALERT_WEBHOOK, then: bike-assets alerts test",
        ),
    }
    findings = []
    for name, (check, remedy) in checks.items():
        say(name)
        findings.append(_examined(name, check, remedy, settings, seconds))
    return findings


def _examined(
    name: str, check: Callable[[Settings], str], remedy: str, settings: Settings, seconds: float
) -> Finding:
    """One check, in a thread that is left behind where it does not end."""
    findings: list[Finding] = []

    def examine() -> None:
        try:
            findings.append(Finding(name, "ok", check(settings)))
        except _IllError as ill:
            findings.append(Finding(name, ill.outcome, str(ill), ill.remedy))
        except PermanentError as error:  # ends with what to do, where it knows
            text, _, own = str(error).rpartition("; ")
            findings.append(Finding(name, "fail", text or own, own if text else remedy))
        except TransientError as error:  # says to run again, which is what was just done
            findings.append(Finding(name, "fail", str(error).removesuffix("; run again"), remedy))
        except Exception as error:  # whatever a library raises is what was to be found out
            lines = str(error).strip().splitlines() or [type(error).__name__]
            findings.append(Finding(name, "fail", f"{type(error).__name__}: {lines[0]}", remedy))

    thread = threading.Thread(target=examine, daemon=True, name=f"{_THREAD} {name}")
    thread.start()
    thread.join(seconds)
    return findings[0] if findings else Finding(name, "fail", f"no answer within {seconds:g} s", remedy)


def _packages(_: Settings) -> str:
    wrong = []
    for line in requires("bike-assets") or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": "platform"}):
            continue
        try:
            has = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
        else:
            if not wanted.specifier.contains(has, prereleases=True):
                wrong.append(f"{wanted.name} is {has} and not {wanted.specifier}")
    if wrong:
        raise _IllError(", ".join(wrong), "uv sync --locked")
    return f"Python {sys.version.split()[0]}, Dagster {version('dagster')}, dbt {version('dbt-core')}"


def _home(settings: Settings) -> str:
    settings.home.mkdir(parents=True, exist_ok=True)
    probe = settings.home / f".doctor-{os.getpid()}"
    probe.write_text("")
    probe.unlink()
    free = shutil.disk_usage(settings.home).free / 1e9
    if free < FREE_GIGABYTES:
        raise _IllError(f"{free:.1f} GB are free in {settings.home}", "make room, or move the home", "warn")
    return f"{settings.home}, {free:.0f} GB free"


def _warehouse(settings: Settings) -> str:
    from bike_assets.resources.warehouse import Warehouse

    if not settings.has_warehouse:
        raise _IllError("there is none yet", "bike-assets demo, or bike-assets ingest", "warn")
    return Warehouse.from_settings(settings).prove()


def _mlflow(settings: Settings) -> str:
    from bike_assets.resources.registry import ModelRegistry

    if not settings.tracking_uri.startswith("http"):
        if settings.env != "local":
            raise _IllError(
                "its store is a file of this machine", "set BIKE_MLFLOW_TRACKING_URI to the server's address"
            )
        return "SQLite in the home"
    ours = version("mlflow")
    theirs = _get(settings.tracking_uri.rstrip("/") + "/version")
    ModelRegistry.from_settings(settings).client().search_registered_models(max_results=1)
    if theirs != ours:
        raise _IllError(f"the server is {theirs}, this is {ours}", "run the same image on both sides", "warn")
    return f"{settings.tracking_uri}, version {theirs}"


def _dagster(settings: Settings) -> str:
    from dagster_postgres.utils import DagsterPostgresException

    from bike_assets.home import deployed_instance, open_instance

    try:
        with open_instance(settings) as instance:
            runs = instance.get_runs_count()
            in_files = "Sqlite" in type(instance.run_storage).__name__
    except DagsterPostgresException as error:  # tried several times; why is in what it comes from
        raise _IllError(
            f"PostgreSQL: {str(getattr(error.__cause__, 'orig', error)).splitlines()[0]}",
            "start it, and check DAGSTER_POSTGRES_HOST, _USER, _DB and _PASSWORD",
        ) from error
    place = deployed_instance(settings) or settings.dagster_home
    if settings.env != "local" and in_files:
        raise _IllError(
            f"its state is in files, in {place}", "set DAGSTER_HOME to a folder with deploy/dagster.yaml"
        )
    return f"{'files' if in_files else 'PostgreSQL'} by {place}, {runs} runs"


def _bundles(settings: Settings) -> str:
    from bike_assets.resources.bucket import prove

    if not settings.bundles_url:
        return f"{settings.bundles_dir}, and no bucket"
    prove(settings.bundles_url)
    return f"{settings.bundles_url} can be written"


def _signing_key(settings: Settings) -> str:
    from bike_assets.core.bundle import load_or_create_keys

    if not settings.keys_dir.exists():
        raise _IllError("there is none yet", "the first champion makes it; keep a copy of it then", "warn")
    load_or_create_keys(settings.keys_dir)
    return f"{settings.keys_dir}"


def _source(settings: Settings) -> str:
    if settings.source == "archive":
        missing = [str(path) for path in settings.data if not Path(path).exists()]
        if missing or not settings.data:
            raise _IllError(
                f"no file: {', '.join(missing) or 'none is named'}", "name files or folders with BIKE_DATA"
            )
        return f"{len(settings.data)} files or folders"
    if settings.source == "paris":
        address = f"{settings.paris_portal}/api/explore/v2.1/catalog/datasets/{settings.paris_dataset}"
        json.loads(_get(address))
        return address
    return "the simulator"


def _weather(settings: Settings) -> str:
    source = settings.weather_source
    if source == "file":
        missing = [str(path) for path in settings.weather_data if not Path(path).exists()]
        if missing or not settings.weather_data:
            raise _IllError(
                f"no file: {', '.join(missing) or 'none is named'}", "name files with BIKE_WEATHER_DATA"
            )
    if source == "open-meteo":
        where = f"latitude={settings.weather_latitude}&longitude={settings.weather_longitude}"
        json.loads(_get(f"{settings.open_meteo_forecast_url}?{where}&hourly=temperature_2m&forecast_days=1"))
    return source


def _service(settings: Settings) -> str:
    if not settings.serving_url:
        raise _IllError("none is watched", "set BIKE_SERVING_URL", "warn")
    _get(settings.serving_url.rstrip("/") + "/ready")
    return f"{settings.serving_url} is ready"


def _alerts(settings: Settings) -> str:
    from bike_assets.resources.alerts import Alerts

    sinks = Alerts.from_settings(settings).sinks()
    if not sinks:
        raise _IllError(
            "nobody is told what happens", "set BIKE_ALERT_DISCORD_WEBHOOK or BIKE_ALERT_WEBHOOK", "warn"
        )
    return ", ".join(sinks)


def _get(address: str) -> str:
    """What an address of the settings answers."""
    if not address.startswith(("http://", "https://")):
        raise _IllError(f"{address} is no web address", "begin it with http:// or https://")
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:  # noqa: S310  the scheme was looked at
            return str(answer.read().decode().strip())
    except urllib.error.HTTPError as error:
        raise TransientError(f"{address.partition('?')[0]} answers {error.code}") from error
    except urllib.error.URLError as error:
        raise TransientError(f"{address.partition('?')[0]} cannot be reached: {error.reason}") from error


def are_waiting() -> bool:
    """Whether a check that was given up still waits for its answer."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


def as_result(settings: Settings, findings: list[Finding]) -> dict[str, Any]:
    """The findings as `bike-assets doctor --json` prints them."""
    return {
        "env": settings.env,
        "healthy": is_healthy(findings),
        "checks": [asdict(each) for each in findings],
    }


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing failed."""
    return all(each.outcome != "fail" for each in findings)
