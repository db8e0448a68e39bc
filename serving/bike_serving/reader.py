"""Reads a stranger's Parquet or Arrow table in a process of its own, within limits on memory and time.

Belongs here: what that process runs: `python -m bike_serving.reader FORM ROWS COLUMN...`, the table on standard input,
on standard output the named columns that it has, as an uncompressed Arrow stream. It ends with status 1, and says
nothing, when it cannot. Does not belong here: anything that knows of requests.
"""

import io
import os
import resource
import sys

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 10
RESULT_BYTES = 32 * 1024 * 1024
"""What is handed on is read into the service's own memory."""


def main(form: str, rows: int, columns: list[str]) -> None:
    """Read standard input, write standard output."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.environ["POLARS_MAX_THREADS"] = "1"
    import polars as pl

    # Address space, of which the imported libraries take some before a single row is read.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    body = io.BytesIO(sys.stdin.buffer.read())
    if form == "parquet":
        scan = pl.scan_parquet(body)
        wanted = [name for name in columns if name in scan.collect_schema().names()]
        frame = scan.select(wanted).head(rows).collect()
    else:
        frame = pl.read_ipc_stream(body)
        frame = frame.select(name for name in columns if name in frame.columns).head(rows)
    # Dictionaries and views are laid out plainly, and hours as text, which every route reads alike.
    frame = frame.with_columns(
        pl.selectors.categorical().cast(pl.String),
        pl.selectors.datetime(time_zone=None).dt.strftime("%Y-%m-%dT%H:%M:%S%.f"),
        pl.selectors.datetime(time_zone="*").dt.convert_time_zone("UTC").dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ"),
    )
    if frame.estimated_size() > RESULT_BYTES:
        raise ValueError("no table of ids, hours and counts is as large")
    out = io.BytesIO()
    frame.write_ipc_stream(out, compression="uncompressed")
    sys.stdout.buffer.write(out.getvalue())


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
    except BaseException:  # a panic of the library is no Exception
        os._exit(1)
