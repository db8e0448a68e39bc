"""Which files an archive consists of, and their bytes: plain, gzip or zip, as far as they can be read.

Belongs here: paths, compression and damage to it. Does not belong here: what the bytes mean.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bike_assets.sources.base import SourceFault

CHUNK = 1 << 20

KINDS = {
    ".csv": "csv",
    ".json": "json",
    ".geojson": "json",
    ".ndjson": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
"""File name endings and the format they mean; `.gz` may follow them, and they may lie in a `.zip`."""

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT 4.3.7
_ENDINGS = ", ".join((*KINDS, ".gz", ".zip"))


class DamagedError(Exception):
    """The bytes end here although the file does not: what was read so far is right, the rest is lost."""


@dataclass(frozen=True)
class Export:
    """One export: a file, or one member of a zip. `chunks` may raise `DamagedError` after the good bytes."""

    file: str
    kind: str
    chunks: Iterator[bytes]


def find_files(paths: Sequence[Path]) -> tuple[list[Path], list[SourceFault]]:
    """Every export file among the paths, each once, in an order that depends on their names alone.

    A folder is searched to its end; other files in it are passed over. A file that is named must be one.
    """
    files: dict[Path, Path] = {}
    faults = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.is_file() and _kind(file.name)]
            files |= {file.resolve(): file for file in inside}
            if not inside:
                faults.append(_fault(path, "the folder holds no exports", f"put files ({_ENDINGS}) into it"))
        elif not path.exists():
            faults.append(_fault(path, "there is no such file or folder", "check the path"))
        elif not _kind(path.name):
            faults.append(_fault(path, "is of no known kind", f"give files ending in {_ENDINGS}"))
        else:
            files[path.resolve()] = path
    return sorted(files.values(), key=lambda file: (file.name, str(file))), faults


def _fault(path: Path, problem: str, remedy: str) -> SourceFault:
    return SourceFault(file=path.name or str(path), where="", problem=problem, remedy=remedy)


def _kind(name: str) -> str | None:
    """Format that a file name means; "zip" for a container, None where it means nothing."""
    path = PurePosixPath(name.lower())
    if path.name.startswith("."):
        return None
    if path.suffix == ".zip":
        return "zip"
    if path.suffix == ".gz":
        path = path.with_suffix("")
    return KINDS.get(path.suffix)


def open_exports(path: Path) -> Iterator[Export | SourceFault]:
    """The exports in one file: itself, or the members of a zip, or a fault where there is nothing to read.

    What the bytes say beats what the name says about compression: browsers unpack `.gz` and keep the name.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        yield _fault(path, f"cannot be opened ({error.strerror})", "check the file and its permissions")
        return
    kind = _kind(path.name) or ""
    if not magic:
        yield _fault(path, "the file is empty", "export it again")
    elif magic == _ZIP:
        yield from _zip_members(path)
    elif kind == "zip":
        yield _fault(path, "is not a zip file", "download it again")
    elif magic.startswith(_GZIP):
        yield Export(path.name, kind, _gunzipped(path))
    else:
        yield Export(path.name, kind, _plain(path))


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _gunzipped(path: Path) -> Iterator[bytes]:
    """The bytes of all gzip members, as far as they go."""
    inflate = zlib.decompressobj(wbits=31)
    for chunk in _plain(path):
        while chunk:
            yield from _inflated(inflate, chunk, "the gzip data is damaged here")
            chunk = inflate.unused_data
            if inflate.eof and chunk.strip(b"\0"):
                inflate = zlib.decompressobj(wbits=31)
            elif inflate.eof:
                break
    if not inflate.eof:
        yield inflate.flush()
        raise DamagedError("the gzip data ends here before its end")


def _inflated(inflate: "zlib._Decompress", chunk: bytes, damage: str) -> Iterator[bytes]:
    """The chunk unpacked. Where it is damaged, everything before the damage first, which zlib would withhold."""
    before = inflate.copy()
    try:
        yield inflate.decompress(chunk)
    except zlib.error as error:
        for i in range(len(chunk)):
            try:
                yield before.decompress(chunk[i : i + 1])
            except zlib.error:
                break
        raise DamagedError(damage) from error


def _zip_members(path: Path) -> Iterator[Export | SourceFault]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        yield from _first_member_of_damaged(path)
        return
    with archive:
        names = sorted(
            info.filename
            for info in archive.infolist()
            if not info.is_dir() and _kind(PurePosixPath(info.filename).name) in set(KINDS.values())
        )
        nested = [name for name in archive.namelist() if _kind(PurePosixPath(name).name) == "zip"]
        for name in sorted(nested):
            inner = f"{path.name}/{name}"
            yield SourceFault(
                inner, where="", problem="is a zip inside a zip", remedy="unpack the outer one and give that"
            )
        if not names and not nested:
            yield _fault(path, "the zip file holds no exports", f"put files ({_ENDINGS}) into it")
        for name in names:
            label = path.name if len(names) == 1 else f"{path.name}/{name}"
            yield Export(label, _kind(PurePosixPath(name).name) or "", _unzipped(archive, name))


def _unzipped(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    try:
        with archive.open(name) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (RuntimeError, NotImplementedError) as error:  # a password, or a compression Python cannot undo
        raise DamagedError(f"the zip data cannot be unpacked ({error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise DamagedError("the zip data is damaged here") from error


def _first_member_of_damaged(path: Path) -> Iterator[Export | SourceFault]:
    """A zip's directory is at its end: without it the first member can still be unpacked from the start."""
    with path.open("rb") as stream:
        head = stream.read(_LOCAL_HEADER.size)
        if len(head) < _LOCAL_HEADER.size:
            yield _fault(path, "the zip file is cut off in its header", "download it again")
            return
        method, name_size, extra_size = (_LOCAL_HEADER.unpack(head)[i] for i in (3, 9, 10))
        name = stream.read(name_size).decode("utf-8", "replace")
    start = _LOCAL_HEADER.size + name_size + extra_size
    kind = _kind(PurePosixPath(name).name)
    if kind is None or kind == "zip" or method != zipfile.ZIP_DEFLATED:
        yield _fault(path, "the zip file is damaged", "download it again")
        return
    yield Export(path.name, kind, _inflated_member(path, start))


def _inflated_member(path: Path, start: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=-15)
    with path.open("rb") as stream:
        stream.seek(start)
        while (chunk := stream.read(CHUNK)) and not inflate.eof:
            yield from _inflated(inflate, chunk, "the zip data is damaged here")
    raise DamagedError("the zip file is cut off here")
