"""`bike-assets data` as people use it, and snapshots moved by a real DVC."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bike_assets.resources.snapshots import SnapshotStore
from bike_assets_tests.homes import (
    TINY_CITY,
    assert_same_tables,
    bike_assets,
    environment,
    kill,
    one_json,
    settings_of,
    started,
    tables,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RAW = "bike_traffic_raw.raw_counts"
DAYS = ("--from", "2024-10-20", "--to", "2024-11-10")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three weeks of raw counts, over the autumn clock change. Only to be copied."""
    home = tmp_path_factory.mktemp("data") / "home"
    done = bike_assets("materialize", "raw_counts", *DAYS, "--home", home, env=TINY_CITY)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "home")


def data(home: Path, *arguments: str) -> dict[str, object]:
    done = bike_assets("data", *arguments, "--home", home, "--json", env=TINY_CITY)
    assert done.returncode == 0, done.stderr
    return one_json(done.stdout)


def correct(home: Path) -> None:
    import duckdb

    with duckdb.connect(str(home / "warehouse.duckdb")) as connection:
        connection.execute(
            f"UPDATE {RAW} SET hourly_count = hourly_count + 1 WHERE service_date = DATE '2024-11-02'"  # noqa: S608
        )


def refusal(home: Path, *arguments: str) -> str:
    """The one line of a command that was refused."""
    done = bike_assets("data", *arguments, "--home", home, env=TINY_CITY)
    assert done.returncode == 1
    assert done.stdout == ""
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.slow
def test_keep_correct_compare_and_go_back(home: Path) -> None:
    before = tables(home)
    first = data(home, "snapshot", "-m", "before [it]")
    correct(home)
    second = data(home, "snapshot")
    (raw, calendar) = data(home, "diff", str(first["id"]), str(second["id"]))["tables"]  # type: ignore[misc]
    assert (raw["added"], raw["removed"], raw["changed"]) == (0, 0, 48)
    assert raw["changed_columns"] == {"hourly_count": 48}
    assert raw["first"] == raw["last"] == "2024-11-02"
    assert len(raw["counters"]) == 2
    assert calendar["changed"] == 0

    done = bike_assets("data", "restore", str(first["id"])[:6], "--home", home, env=TINY_CITY)

    assert done.returncode == 0, done.stderr
    assert f"bike-assets data restore {str(second['id'])[:12]}" in done.stdout
    assert "bike-assets materialize cleaned_counts --from 2024-11-02 --to 2024-11-02" in done.stdout
    assert_same_tables(tables(home), before)
    shown = bike_assets("data", "list", "--home", home, env=TINY_CITY)
    assert "before [it]" in shown.stdout
    assert str(first["id"])[:12] in shown.stdout


@pytest.mark.slow
def test_wrong_ids_and_empty_homes_are_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    assert "bike-assets demo" in refusal(tmp_path / "nothing", "snapshot")
    assert "no snapshot yet" in refusal(home, "restore", "ab")
    assert data(home, "list")["snapshots"] == []
    kept = data(home, "snapshot")
    near = str(kept["id"])[:5] + "x"
    assert f"the nearest: {str(kept['id'])[:12]}" in refusal(home, "diff", near, near)


@pytest.mark.slow
def test_two_commands_at_once_take_one_snapshot(home: Path) -> None:
    with started("data", "snapshot", "--home", home, "--json", env=TINY_CITY) as other:
        mine = data(home, "snapshot")
        stdout, stderr = other.communicate(timeout=60)
    assert other.returncode == 0, stderr
    assert one_json(stdout)["id"] == mine["id"]
    assert len(data(home, "list")["snapshots"]) == 1  # type: ignore[arg-type]


@pytest.mark.slow
def test_killed_at_any_moment_of_a_restore_the_tables_are_the_old_or_the_new(home: Path) -> None:
    """Whenever the command is killed; the moments are those of its output, the last one right before its end."""
    old = tables(home)
    kept = str(data(home, "snapshot")["id"])
    correct(home)
    new = tables(home)
    for word in ("verifying", "keeping", "comparing", "restoring", "recording"):
        with started("data", "restore", kept, "--home", home, env=TINY_CITY) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(word):
                    break
            kill(process)
        found = tables(home)
        state = old if found[RAW].equals(old[RAW]) else new
        assert_same_tables(found, state)
        if state is old:
            correct(home)
    data(home, "restore", kept)
    assert_same_tables(tables(home), old)
    assert data(home, "snapshot")["id"] == kept


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "gs"])
def test_dvc_pushes_and_pulls_what_we_kept(home: Path, tmp_path: Path, kind: str) -> None:
    """A real DVC, in an environment of its own, moves the snapshots to another machine's home by a remote."""
    first = str(data(home, "snapshot")["id"])
    correct(home)
    second = str(data(home, "snapshot")["id"])
    folder = home / "snapshots"
    other = tmp_path / "other"
    with bucket_server() if kind == "gs" else contextlib.nullcontext(None) as storage:
        remote = str(tmp_path / "remote") if storage is None else "gs://counts/of/a/city"
        dvc(folder, "remote", "add", "--default", "storage", remote)
        if storage is not None:
            dvc(folder, "remote", "modify", "storage", "endpointurl", storage)
            dvc(folder, "remote", "modify", "storage", "allow_anonymous_login", "true")
        dvc(folder, "push")
        shutil.copytree(folder, other / "snapshots", ignore=shutil.ignore_patterns("cache", "tmp"))
        fault = "dvc fetch"
        assert fault in refusal(other, "restore", first)

        dvc(other / "snapshots", "pull")

    assert "up to date" in dvc(other / "snapshots", "status")
    store = SnapshotStore.from_settings(settings_of(other))
    for name in (first, second):
        snapshot = store.find(name)
        store.verify(snapshot)
        pulled = other / "snapshots" / snapshot.short_id
        assert {path.relative_to(pulled).as_posix() for path in pulled.rglob("*") if path.is_file()} == {
            "manifest.json",
            *(file.path for file in snapshot.files),
        }
    data(other, "restore", second)
    assert_same_tables(tables(other), tables(home))
    before = dvc(other / "snapshots", "add", str(store.find(first).short_id))
    assert store.find(first).id == first, before  # DVC's own list of the folder has our hash


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC over a folder, in an environment that uv makes for it: it cannot share ours.

    Skips where there is none to be had.
    """
    # gcsfs asks each bucket for its type over gRPC, which no server of tests speaks, and waits a minute for it.
    env = {**tool_environment(), "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    done = subprocess.run(
        [*tool("dvc[gs]==3.67.1", "dvc", "--version"), *arguments],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(package: str, name: str, probe: str) -> list[str]:
    """The command line of a program in an environment of its own. Skips where it is not to be had."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip(f"{name} is run with `uv tool run`, and uv is not on PATH")
    command = [uv, "tool", "run", "--from", package, name]
    there = subprocess.run(
        [*command, probe], env=tool_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    if there.returncode:
        pytest.skip(f"{package} cannot be had here: {there.stderr.strip().splitlines()[-1:]}")
    return command


def tool_environment() -> dict[str, str]:
    env = {**environment(DVC_NO_ANALYTICS="1"), "NO_COLOR": "1"}
    env.pop("VIRTUAL_ENV", None)
    return env


@contextlib.contextmanager
def bucket_server() -> Iterator[str]:
    """The address of a server that speaks the API of Google Cloud Storage and has a bucket `counts`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = tool("gcp-storage-emulator==2026.7.19", "gcp-storage-emulator", "--help")
    with subprocess.Popen(
        [*command, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", "counts"],
        env=tool_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not _answers(port):
                assert process.poll() is None, "the server did not start"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
