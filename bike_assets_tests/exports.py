"""Writes counts in the portal's export formats, so that tests read real formats without anybody's real data.

Belongs here: the formats as the portal writes them, written independently of the code that reads them. Does
not belong here: broken files; tests break the text of good ones.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

CSV_LABELS = (
    "Identifiant du compteur",
    "Nom du compteur",
    "Identifiant du site de comptage",
    "Nom du site de comptage",
    "Comptage horaire",
    "Date et heure de comptage",
    "Date d'installation du site de comptage",
    "Lien vers photo du site de comptage",
    "Coordonnées géographiques",
    "Identifiant technique compteur",
    "ID Photos",
    "test_lien_vers_photos_du_site_de_comptage_",
    "id_photo_1",
    "url_sites",
    "type_dimage",
    "mois_annee_comptage",
)


def csv_lines(counts: pl.DataFrame, separator: str = ";") -> list[str]:
    """Header and rows of the portal's CSV export, without line ends.

    Args:
        counts: columns of `COUNTS_SCHEMA`; publication columns are ignored.
        separator: `;` as today's exports, `,` as those of 2022.
    """
    lines = [separator.join(CSV_LABELS)]
    for row in counts.iter_rows(named=True):
        local = row["ts_utc"].astimezone(_paris())
        count = "" if row["hourly_count"] is None else repr(row["hourly_count"])
        place = f"{row['latitude']},{row['longitude']}"
        fields = [
            row["counter_id"],
            row["counter_name"],
            row["site_id"],
            row["site_name"],
            count,
            local.isoformat(),
            str(row["installation_date"] or ""),
            '""',
            place if separator == ";" else f'"{place}"',
            *['""'] * 6,
            local.strftime("%Y-%m"),
        ]
        lines.append(separator.join(fields))
    return lines


def _paris() -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo("Europe/Paris")


def write_lines(
    lines: Sequence[str], path: Path, *, encoding: str = "utf-8-sig", newline: str = "\n"
) -> Path:
    """Text lines as a file; the name's ending says how it is packed (`.gz`, `.zip`, or not at all)."""
    data = "".join(line + newline for line in lines).encode(encoding)
    return write_bytes(data, path)


def write_bytes(data: bytes, path: Path) -> Path:
    """Bytes as a file, packed as its name says."""
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{path.stem}.csv", data)
        data = buffer.getvalue()
    path.write_bytes(data)
    return path


def export_csv(counts: pl.DataFrame, path: Path, *, separator: str = ";", **how: Any) -> Path:
    """The portal's CSV export of the counts. `how` goes to `write_lines`."""
    return write_lines(csv_lines(counts, separator), path, **how)


def api_records(counts: pl.DataFrame) -> list[dict[str, Any]]:
    """The records of API v2.1: UTC hours, positions as {lon, lat}, whole counts."""
    return [
        {
            "id_compteur": row["counter_id"],
            "nom_compteur": row["counter_name"],
            "id": row["site_id"],
            "name": row["site_name"],
            "sum_counts": None if row["hourly_count"] is None else int(row["hourly_count"]),
            "date": row["ts_utc"].isoformat(),
            "installation_date": str(row["installation_date"]) if row["installation_date"] else None,
            "coordinates": {"lon": row["longitude"], "lat": row["latitude"]},
        }
        for row in counts.iter_rows(named=True)
    ]


def export_json(counts: pl.DataFrame, path: Path, shape: str = "array") -> Path:
    """A JSON export: `array`, `lines` (NDJSON), `results` (API v2.1) or `v1` (API v1 records)."""
    records = api_records(counts)
    match shape:
        case "lines":
            text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        case "results":
            text = json.dumps({"total_count": len(records), "results": records}, ensure_ascii=False)
        case "v1":
            for record in records:
                record["coordinates"] = [record["coordinates"]["lat"], record["coordinates"]["lon"]]
            text = json.dumps(
                [
                    {
                        "datasetid": "comptage-velo-donnees-compteurs",
                        "recordid": str(i),
                        "fields": record,
                        "geometry": {"type": "Point", "coordinates": record["coordinates"][::-1]},
                    }
                    for i, record in enumerate(records)
                ],
                ensure_ascii=False,
            )
        case _:
            text = json.dumps(records, ensure_ascii=False, indent=1)
    return write_bytes(text.encode(), path)


def api_frame(counts: pl.DataFrame) -> pl.DataFrame:
    """The records of API v2.1 as its Parquet exports type them."""
    return counts.select(
        pl.col("counter_id").alias("id_compteur"),
        pl.col("counter_name").alias("nom_compteur"),
        pl.col("site_id").alias("id"),
        pl.col("site_name").alias("name"),
        pl.col("hourly_count").alias("sum_counts"),
        pl.col("ts_utc").cast(pl.Datetime("ms", "UTC")).alias("date"),
        pl.col("installation_date").cast(pl.String),
        pl.struct(pl.col("longitude").alias("lon"), pl.col("latitude").alias("lat")).alias("coordinates"),
    )


def export_parquet(counts: pl.DataFrame, path: Path) -> Path:
    """A Parquet export with API field names."""
    api_frame(counts).write_parquet(path)
    return path
