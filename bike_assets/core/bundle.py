"""The champion bundle: the signed, content-addressed directory through which a model reaches the service.

Belongs here: how a bundle is written, signed, verified, loaded and asked for a forecast. Does not belong
here: which model is champion (`promotion`, the registry), how features and forecasts are computed
(`features`, `model`), and where the folder of bundles lives.

A bundle is a flat directory, written once and never changed, whose name is the hash of its manifest:

    trees.npz, log_linear.npz     (or another family's files), calibration.json and affluence.json: the forecaster
    model.cbm                     its trees as CatBoost keeps them; forecasts do not need it
    context.parquet               the recent cleaned counts that the features of a forecast need
    weather.parquet               the observed weather of those days and the forecasts of their mornings
    calibrations.parquet          of the intervals of each issue date, as the platform forecast it
    counters.parquet              names and positions of the counters
    golden.parquet                a few forecasts it must reproduce to the last digit wherever it is loaded
    manifest.json                 what it is, what it was made from, SHA-256 and size of each file above
    manifest.sig                  Ed25519 signature (RFC 8032) over the bytes of manifest.json

Nothing in it is executable and nothing is parsed before the signature and the hashes hold.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from bike_assets.core.affluence import Affluence
from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.core.contracts import CALIBRATIONS, CLEANED_COUNTS, COUNTERS, PREDICTIONS, RAW_WEATHER
from bike_assets.core.errors import BundleError, PermanentError
from bike_assets.core.features import FEATURE_COLUMNS, LOOKBACK_DAYS, build_features
from bike_assets.core.intervals import Calibration
from bike_assets.core.model import Forecaster
from bike_assets.core.weather import WEATHER_COLUMNS

FORMAT = "bike-bundle"
FORMAT_VERSION = 3

ISSUE_DAYS = 35
"""How many issue dates before the newest one a bundle can still answer for, in days."""

CONTEXT_COLUMNS = ("counter_id", "service_date", "ts_utc", "local_hour", "hourly_count")
"""The columns of cleaned counts that features are built from, and so all that a bundle carries of them."""

WEATHER_CONTEXT_COLUMNS = ("service_date", "ts_utc", "kind", "temperature_c", "rain_mm", "wind_kmh")
"""The columns of raw weather that features are built from."""

BUNDLE_ID_PATTERN = re.compile(r"[0-9a-f]{32}")
"""What a bundle's name looks like; anything else that claims to be one is not a path to be opened."""

_MANIFEST = "manifest.json"
_SIGNATURE = "manifest.sig"
_CONTEXT = "context.parquet"
_WEATHER = "weather.parquet"
_CALIBRATIONS = "calibrations.parquet"
_COUNTERS = "counters.parquet"
_GOLDEN = "golden.parquet"
_CALIBRATION = "calibration.json"
_TEMPORARY = ".tmp-"
_FILE_NAME = re.compile(r"[a-z0-9_]+\.(cbm|json|npz|parquet)")
_PRIVATE_KEY = "bundle.key"  # pragma: allowlist secret  (a name of a file)
_PUBLIC_KEY = "bundle.pub"


class UnknownCounterError(PermanentError):
    """A forecast was asked for a counter that the bundle cannot forecast. `counter_ids` names which."""

    def __init__(self, message: str, counter_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.counter_ids = counter_ids


class IssueDateError(PermanentError):
    """A forecast was asked for an issue date whose history the bundle does not carry."""


class BundleKeys(NamedTuple):
    """The pair of keys of a home: the platform signs with the one, the service verifies with the other."""

    signing_key: Ed25519PrivateKey
    public_key: Ed25519PublicKey


@dataclass(frozen=True)
class BundleInfo:
    """Where a bundle's model comes from. `metrics` may be nested; its numbers must be finite."""

    model_name: str
    model_version: str
    run_id: str
    git_commit: str
    data_hash: str
    trained_until: date
    metrics: Mapping[str, Any]
    created_at: datetime
    horizons: tuple[int, ...] = tuple(range(1, 8))
    timezone: str = LOCAL_TZ


class Bundle:
    """A loaded and verified bundle. Immutable for its users; safe to ask from several threads at once.

    Tables that only computing needs are read when something is computed.
    """

    def __init__(
        self,
        bundle_id: str,
        info: BundleInfo,
        forecaster: Forecaster,
        issue_dates: tuple[date, date],
        tables: Mapping[str, bytes],
        newest: Callable[[], pl.DataFrame] | None = None,
    ) -> None:
        self.bundle_id = bundle_id
        self.info = info
        self.counters = pl.read_parquet(BytesIO(tables[_COUNTERS]))
        self.first_issue_date, self.issue_date = issue_dates
        self._forecaster = forecaster
        self._tables = tables
        self._newest = newest
        self._forecasts: dict[date, pl.DataFrame] = {}
        self._lock = threading.Lock()

    @cached_property
    def _context(self) -> pl.DataFrame:
        return pl.read_parquet(BytesIO(self._tables[_CONTEXT]))

    @cached_property
    def _weather(self) -> pl.DataFrame:
        return pl.read_parquet(BytesIO(self._tables[_WEATHER]))

    @cached_property
    def _calibrations(self) -> dict[date, Calibration]:
        return _calibrations(pl.read_parquet(BytesIO(self._tables[_CALIBRATIONS])))

    @property
    def model_type(self) -> str:
        """Name of the model's family."""
        return self._forecaster.config.family

    @property
    def affluence(self) -> Affluence:
        """What calls an hour of a counter high or low."""
        return self._forecaster.affluence

    @property
    def counts(self) -> pl.DataFrame:
        """The recent cleaned counts that forecasts rest on: CONTEXT_COLUMNS."""
        return self._context

    def forecast(
        self, counter_ids: Sequence[str] | None = None, issue_date: date | None = None
    ) -> pl.DataFrame:
        """The forecast vintage of one issue date: every hour of the next days, for each counter asked for.

        An issue date is computed once for all counters and kept, so that an answer cannot depend on what else
        was asked for with it, and asking again is a look-up.

        Args:
            counter_ids: the counters, or None for all that can be forecast.
            issue_date: local day of issue, or None for the newest, the day after the newest count.

        Returns:
            Rows that keep the PREDICTIONS contract, ordered by counter_id and target_ts.

        Raises:
            UnknownCounterError: a counter is unknown, or has no counts recent enough to forecast from.
            IssueDateError: the issue date is before `first_issue_date` or after `issue_date`.
        """
        day = self.issue_date if issue_date is None else issue_date
        self._require(day)
        forecast = self._vintage(day)
        if counter_ids is None:
            return forecast
        known = set(forecast.get_column("counter_id").unique())
        if unknown := tuple(
            counter_id for counter_id in dict.fromkeys(counter_ids) if counter_id not in known
        ):
            raise UnknownCounterError(
                f"no forecast for counter {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}: "
                f"unknown, or without counts in the {LOOKBACK_DAYS} days before {day}",
                unknown,
            )
        return forecast.filter(pl.col("counter_id").is_in(list(counter_ids)))

    def features(self, issue_date: date) -> pl.DataFrame:
        """What the forecasts of one issue date were computed from: rows of `build_features`, all counters.

        Raises:
            IssueDateError: as `forecast` does.
        """
        self._require(issue_date)
        return _features(self._context, self._weather, self.counters, self.info, issue_date)

    def what_if(self, issue_date: date, weather: pl.DataFrame) -> pl.DataFrame:
        """The vintage of one issue date, had its morning expected other weather; computed anew at every call.

        Args:
            issue_date: local day of issue.
            weather: ts_utc and any of temperature_c (°C), rain_mm (mm in the hour) and wind_kmh (km/h); each hour
                once. What is null or left out stays as it was expected.

        Returns:
            As `forecast` does.

        Raises:
            IssueDateError: as `forecast` does.
        """
        self._require(issue_date)
        morning = (pl.col("service_date") == issue_date) & (pl.col("kind") == "forecast")
        expected = self._weather.filter(morning)
        told = weather.with_columns(
            pl.lit(None, pl.Float64).alias(name) for name in WEATHER_COLUMNS if name not in weather.columns
        )
        supposed = expected.join(told, on="ts_utc", how="full", coalesce=True, suffix="_told").select(
            pl.lit(issue_date).alias("service_date"),
            "ts_utc",
            pl.lit("forecast").alias("kind"),
            *(pl.coalesce(f"{name}_told", name).alias(name) for name in WEATHER_COLUMNS),
        )
        altered = pl.concat([self._weather.filter(~morning), supposed.select(self._weather.columns)])
        return _compute(
            self._forecaster,
            self._context,
            altered,
            self._calibrations,
            self.counters,
            self.info,
            issue_date,
        )

    def _require(self, day: date) -> None:
        if not self.first_issue_date <= day <= self.issue_date:
            raise IssueDateError(
                f"issue date {day} cannot be answered: bundle {self.bundle_id} holds the history of "
                f"issue dates {self.first_issue_date} to {self.issue_date}"
            )

    def _vintage(self, day: date) -> pl.DataFrame:
        with self._lock:
            if day not in self._forecasts:
                self._forecasts[day] = (
                    self._newest()
                    if self._newest is not None and day == self.issue_date
                    else _compute(
                        self._forecaster,
                        self._context,
                        self._weather,
                        self._calibrations,
                        self.counters,
                        self.info,
                        day,
                    )
                )
            return self._forecasts[day]


def write_bundle(
    root: Path,
    forecaster: Forecaster,
    context: pl.DataFrame,
    info: BundleInfo,
    signing_key: Ed25519PrivateKey,
    counters: pl.DataFrame | None = None,
    weather: pl.DataFrame | None = None,
    calibrations: pl.DataFrame | None = None,
) -> Path:
    """Write a bundle into `root`, or find it there: the same content is the same directory.

    The directory appears whole or not at all: it is written under a temporary name, flushed to disk and
    renamed. What a killed writer left behind is removed by the next one.

    Args:
        root: folder of bundles, made if missing.
        forecaster: the fitted model.
        context: cleaned counts with at least CONTEXT_COLUMNS. Older rows than a bundle needs are left out.
        info: where the model comes from.
        signing_key: Ed25519 private key, see `load_or_create_keys`.
        counters: rows of the COUNTERS contract; those without counts in the context are left out. Without
            it the bundle knows no names and positions.
        weather: rows of `RAW_WEATHER` with at least WEATHER_CONTEXT_COLUMNS, up to the newest issue date; None
            where there is no weather.
        calibrations: rows of the CALIBRATIONS contract of this model; issue dates without one, and all without
            the table, have the intervals of the training.

    Returns:
        `root/<bundle_id>`.

    Raises:
        BundleError: the context is empty, too old or lacks columns, a metric is not a finite number, or
            created_at has no time zone.
    """
    recent = _recent_context(context)
    listed = _listed_counters(recent, counters)
    known_weather = _recent_weather(weather, recent)
    root.mkdir(parents=True, exist_ok=True)
    with _writer_lock(root):
        _remove_leftovers(root)
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
        try:
            forecaster.save(folder)
            recent.write_parquet(folder / _CONTEXT)
            known_weather.write_parquet(folder / _WEATHER)
            kept = (CALIBRATIONS.empty() if calibrations is None else calibrations).select(
                "service_date", "calibration"
            )
            kept.sort("service_date").write_parquet(folder / _CALIBRATIONS)
            listed.write_parquet(folder / _COUNTERS)
            newest = _issue_dates(recent)[1]
            golden = _golden(
                _compute(
                    Forecaster.load(folder), recent, known_weather, _calibrations(kept), listed, info, newest
                )
            )
            golden.write_parquet(folder / _GOLDEN)
            manifest = _manifest_bytes(folder, info, recent, golden)
            (folder / _MANIFEST).write_bytes(manifest)
            (folder / _SIGNATURE).write_bytes(signing_key.sign(manifest))
            return _publish(folder, root / _bundle_id(manifest))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def load_bundle(
    path: Path, public_key: Ed25519PublicKey, newest: Callable[[], pl.DataFrame] | None = None
) -> Bundle:
    """Load a bundle that can be trusted: signature, format, hashes, feature schema and golden set must hold.

    Args:
        path: the bundle's directory; its name is the bundle's id.
        public_key: the key it must be signed for, see `load_public_key`.
        newest: gives its forecast of the newest issue date where that was computed already and compared with the golden
            set, by another process that loaded the same bundle; None to compute and compare here.

    Raises:
        BundleError: anything is missing, altered, added, of another format, or answers differently here.
    """
    manifest_bytes = _signed_manifest(path, public_key)
    try:
        manifest = json.loads(manifest_bytes)
        if (manifest["format"], manifest["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise BundleError(
                f"bundle {path}: format {manifest['format']} {manifest['format_version']} is not "
                f"{FORMAT} {FORMAT_VERSION}; rewrite it with the platform's present release"
            )
        contents = _verified_files(path, manifest["files"])
        _check_schema(path, manifest)
        info = _info_from(manifest)
        forecaster = Forecaster.load(path)
        held = manifest["context"]
        issue_dates = date.fromisoformat(held["first_issue_date"]), date.fromisoformat(held["issue_date"])
        tables = {name: contents[name] for name in (_CONTEXT, _WEATHER, _CALIBRATIONS, _COUNTERS)}
        bundle = Bundle(path.name, info, forecaster, issue_dates, tables, newest)
        if newest is not None:
            return bundle
        golden = pl.read_parquet(BytesIO(contents[_GOLDEN]))
        answers = _golden(bundle.forecast())
    except BundleError:
        raise
    except Exception as error:  # libraries raise types of their own, and none may reach a running service
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(
            f"bundle {path}: cannot be read ({type(error).__name__}: {reason}); rewrite it"
        ) from error
    if not answers.equals(golden):
        raise BundleError(
            f"bundle {path}: forecasts here differ from its golden set (written with "
            f"{manifest['written_with']}, read with {_written_with()}); install the same versions"
        )
    return bundle


def load_or_create_keys(folder: Path) -> BundleKeys:
    """The Ed25519 keys of a home: `bundle.key` (PKCS 8, mode 0600) and `bundle.pub` (PEM), made when missing.

    Raises:
        BundleError: the private key is not one, or other users of the machine can read it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    private_path = folder / _PRIVATE_KEY
    if not private_path.exists():
        created = Ed25519PrivateKey.generate()
        pem = created.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _create_once(private_path, pem, mode=0o600)
    signing_key = _read_private_key(private_path)
    public_pem = signing_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public_path = folder / _PUBLIC_KEY
    if not public_path.exists() or public_path.read_bytes() != public_pem:
        _replace(public_path, public_pem, mode=0o644)
    return BundleKeys(signing_key, signing_key.public_key())


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file.

    Raises:
        BundleError: there is no such file, or it holds no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise BundleError(
            f"public key {path}: {error.strerror}; the platform writes it with its first champion"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"public key {path}: not a PEM public key; copy the platform's {_PUBLIC_KEY}"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"public key {path}: not an Ed25519 key; copy the platform's {_PUBLIC_KEY}")
    return key


def _calibrations(rows: pl.DataFrame) -> dict[date, Calibration]:
    return {
        day: Calibration.from_json(text)
        for day, text in rows.select("service_date", "calibration").iter_rows()
    }


def _compute(
    forecaster: Forecaster,
    context: pl.DataFrame,
    weather: pl.DataFrame,
    calibrations: Mapping[date, Calibration],
    counters: pl.DataFrame,
    info: BundleInfo,
    day: date,
) -> pl.DataFrame:
    features = _features(context, weather, counters, info, day)
    return PREDICTIONS.conform(
        forecaster.predict(features, calibrations.get(day)).with_columns(
            pl.lit(info.model_name).alias("model_name"),
            pl.lit(info.model_version).alias("model_version"),
            pl.lit(info.run_id).alias("run_id"),
        )
    ).sort("counter_id", "target_ts")


def _features(
    context: pl.DataFrame, weather: pl.DataFrame, counters: pl.DataFrame, info: BundleInfo, day: date
) -> pl.DataFrame:
    return build_features(
        context, [day], horizons=info.horizons, tz=info.timezone, weather=weather, positions=counters
    )


def _golden(forecast: pl.DataFrame) -> pl.DataFrame:
    """The forecasts of the first, the middle and the last counter: few rows, every hour and every horizon."""
    ids = forecast.get_column("counter_id").unique().sort().to_list()
    if not ids:
        raise BundleError("bundle: no counter can be forecast from its context; ingest newer counts")
    return forecast.filter(pl.col("counter_id").is_in([ids[0], ids[len(ids) // 2], ids[-1]]))


def _issue_dates(context: pl.DataFrame) -> tuple[date, date]:
    """First and newest issue date whose whole history the context holds; the newest always counts as held."""
    days = context.get_column("service_date")
    first, last = days.min(), days.max()
    if not isinstance(first, date) or not isinstance(last, date):
        raise BundleError("bundle: its context holds no counts; ingest counts before writing one")
    newest = last + timedelta(days=1)
    return min(first + timedelta(days=LOOKBACK_DAYS), newest), newest


def _recent_context(context: pl.DataFrame) -> pl.DataFrame:
    if missing := [name for name in CONTEXT_COLUMNS if name not in context.columns]:
        raise BundleError(
            f"bundle: context lacks column {', '.join(missing)}; give it rows of {CLEANED_COUNTS.relation}"
        )
    _, newest = _issue_dates(context)
    since = newest - timedelta(days=LOOKBACK_DAYS + ISSUE_DAYS)
    dtypes = CLEANED_COUNTS.polars_schema
    return (
        context.filter(pl.col("service_date") >= since)
        .select(pl.col(name).cast(dtypes[name]) for name in CONTEXT_COLUMNS)
        .sort("counter_id", "ts_utc")
        .rechunk()
    )


def _recent_weather(weather: pl.DataFrame | None, recent: pl.DataFrame) -> pl.DataFrame:
    """What of the weather the features of the bundle's issue dates can look at."""
    if weather is None:
        weather = RAW_WEATHER.empty()
    if missing := [name for name in WEATHER_CONTEXT_COLUMNS if name not in weather.columns]:
        raise BundleError(
            f"bundle: weather lacks column {', '.join(missing)}; give it rows of {RAW_WEATHER.relation}"
        )
    dtypes = RAW_WEATHER.polars_schema
    _, newest = _issue_dates(recent)
    return (
        weather.filter(
            pl.col("service_date").is_between(newest - timedelta(days=LOOKBACK_DAYS + ISSUE_DAYS), newest)
        )
        .select(pl.col(name).cast(dtypes[name]) for name in WEATHER_CONTEXT_COLUMNS)
        .sort("service_date", "ts_utc", "kind")
        .rechunk()
    )


def _listed_counters(context: pl.DataFrame, counters: pl.DataFrame | None) -> pl.DataFrame:
    """One row of the COUNTERS contract for each counter of the context, with what is known of it."""
    seen = context.group_by("counter_id").agg(
        pl.col("ts_utc").min().alias("first_seen"),
        pl.col("ts_utc").max().alias("last_seen"),
        pl.len().cast(pl.Int64).alias("hours"),
        pl.col("hourly_count").mean().alias("mean_hourly_count"),
    )
    if counters is not None:
        known = COUNTERS.conform(counters)
        unnamed = seen.join(known, on="counter_id", how="anti")
        seen = pl.concat([known.join(seen, on="counter_id", how="semi"), unnamed], how="diagonal")
    missing = [column for column in COUNTERS.columns if column.name not in seen.columns]
    seen = seen.with_columns(pl.lit(None, dtype=column.dtype).alias(column.name) for column in missing)
    return COUNTERS.conform(seen).sort("counter_id")


def _manifest_bytes(folder: Path, info: BundleInfo, context: pl.DataFrame, golden: pl.DataFrame) -> bytes:
    first_issue, newest_issue = _issue_dates(context)
    names = sorted(entry.name for entry in folder.iterdir())
    if odd := [name for name in names if not _FILE_NAME.fullmatch(name)]:
        raise BundleError(f"bundle: {odd[0]} is not a file name a bundle may hold")
    if info.created_at.tzinfo is None:
        raise BundleError("bundle: created_at has no time zone; give a moment in UTC")
    _require_finite(info.metrics, "metrics")
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_at": info.created_at.isoformat(),
        "written_with": _written_with(),
        "model": {
            "name": info.model_name,
            "version": info.model_version,
            "run_id": info.run_id,
            "git_commit": info.git_commit,
            "data_hash": info.data_hash,
            "trained_until": info.trained_until.isoformat(),
        },
        "timezone": info.timezone,
        "horizons": list(info.horizons),
        "features": _feature_schema(),
        "lookback_days": LOOKBACK_DAYS,
        "interval_calibration": _CALIBRATION,
        "metrics": info.metrics,
        "context": {
            "rows": context.height,
            "counters": context.get_column("counter_id").n_unique(),
            "first_issue_date": first_issue.isoformat(),
            "issue_date": newest_issue.isoformat(),
        },
        "golden": {"file": _GOLDEN, "rows": golden.height, "issue_date": newest_issue.isoformat()},
        "files": {
            name: {"sha256": _sha256((folder / name).read_bytes()), "bytes": (folder / name).stat().st_size}
            for name in names
        },
    }
    return json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False, default=dict).encode()


def _info_from(manifest: dict[str, Any]) -> BundleInfo:
    model = manifest["model"]
    return BundleInfo(
        model_name=model["name"],
        model_version=model["version"],
        run_id=model["run_id"],
        git_commit=model["git_commit"],
        data_hash=model["data_hash"],
        trained_until=date.fromisoformat(model["trained_until"]),
        metrics=manifest["metrics"],
        created_at=datetime.fromisoformat(manifest["created_at"]),
        horizons=tuple(manifest["horizons"]),
        timezone=manifest["timezone"],
    )


def _signed_manifest(path: Path, public_key: Ed25519PublicKey) -> bytes:
    if not BUNDLE_ID_PATTERN.fullmatch(path.name):
        raise BundleError(f"bundle {path}: a bundle's directory is named by 32 hexadecimal digits")
    if path.is_symlink() or not path.is_dir():
        raise BundleError(f"bundle {path}: there is no such directory; check the folder of bundles")
    manifest = _read_regular(path, _MANIFEST)
    signature = _read_regular(path, _SIGNATURE)
    try:
        public_key.verify(signature, manifest)
    except InvalidSignature as error:
        raise BundleError(
            f"bundle {path}: {_MANIFEST} is not signed with the expected key, or was altered; "
            f"check the public key, then rewrite the bundle"
        ) from error
    if _bundle_id(manifest) != path.name:
        raise BundleError(f"bundle {path}: holds the content of bundle {_bundle_id(manifest)}; rewrite it")
    return manifest


def _verified_files(path: Path, files: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    """The bytes of each file the manifest lists, all of them present, unaltered, and none besides them."""
    if odd := [name for name in files if not _FILE_NAME.fullmatch(name) or name == _MANIFEST]:
        raise BundleError(f"bundle {path}: its manifest lists {odd[0]!r}, which is no file name of a bundle")
    if extra := sorted(
        entry.name for entry in path.iterdir() if entry.name not in {*files, _MANIFEST, _SIGNATURE}
    ):
        raise BundleError(f"bundle {path}: {extra[0]!r} is not in its manifest; remove it")
    contents = {}
    for name, expected in sorted(files.items()):
        content = _read_regular(path, name)
        if len(content) != expected["bytes"] or _sha256(content) != expected["sha256"]:
            raise BundleError(f"bundle {path}: {name} was altered or cut off; rewrite the bundle")
        contents[name] = content
    return contents


def _check_schema(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["features"] != _feature_schema() or manifest["lookback_days"] != LOOKBACK_DAYS:
        theirs = {feature["name"] for feature in manifest["features"]}
        differing = sorted(theirs.symmetric_difference(FEATURE_COLUMNS))
        raise BundleError(
            f"bundle {path}: its model was trained on other features than this release computes "
            f"({', '.join(differing[:3]) or 'order, types or look-back'}); run the release it was written "
            f"with or train again"
        )


def _feature_schema() -> list[dict[str, str]]:
    return [{"name": name, "dtype": "float32"} for name in FEATURE_COLUMNS]


def _written_with() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("numpy", "polars")}


def _bundle_id(manifest: bytes) -> str:
    return _sha256(manifest)[:32]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require_finite(inner, f"{where}.{key}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"bundle: {where} is {value}; give a finite number or leave it out")


def _read_regular(path: Path, name: str) -> bytes:
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"bundle {path}: {name} is missing; rewrite the bundle")
    return file.read_bytes()


@contextmanager
def _writer_lock(root: Path) -> Iterator[None]:
    """One writer at a time, so that every temporary directory found is a dead writer's."""
    import fcntl  # not on Windows, where reading bundles must still work

    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(root: Path) -> None:
    for leftover in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _publish(folder: Path, target: Path) -> Path:
    if target.is_dir() and _same_content(folder, target):
        return target
    for file in folder.iterdir():
        file.chmod(0o644)
        _flush(file)
    folder.chmod(0o755)
    _flush(folder)
    damaged = target.with_name(f"{_TEMPORARY}damaged-{target.name}")
    if target.exists():
        target.rename(damaged)  # only damage can make it differ from what its name says
    folder.rename(target)
    _flush(target.parent)
    shutil.rmtree(damaged, ignore_errors=True)
    return target


def _same_content(one: Path, other: Path) -> bool:
    names = sorted(entry.name for entry in one.iterdir())
    if names != sorted(entry.name for entry in other.iterdir()):
        return False
    return all(
        not (other / name).is_symlink() and (one / name).read_bytes() == (other / name).read_bytes()
        for name in names
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    if path.stat().st_mode & 0o007:
        raise BundleError(
            f"private key {path}: other users can read it; run chmod 600 on it, or make a new one"
        )
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"private key {path}: not an unencrypted PEM key; remove it to make a new one"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"private key {path}: not an Ed25519 key; remove it to make a new one")
    return key


def _create_once(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole unless another process was faster; then its file stands."""
    temporary = _temporary_file(path, content, mode)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _replace(path: Path, content: bytes, mode: int) -> None:
    _temporary_file(path, content, mode).replace(path)


def _temporary_file(path: Path, content: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)  # mkstemp makes it 0600
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(name).chmod(mode)
    return Path(name)
