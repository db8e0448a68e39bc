"""The command line teaches, refuses in one line with a remedy, and lets nothing break a home."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperArgument, TyperGroup

from bike_assets.cli import app
from bike_assets_tests.homes import (
    TINY_CITY,
    DemoHome,
    assert_same_tables,
    bike_assets,
    copy_home,
    one_json,
    run_logs,
    started,
    tables,
    wait_for_step,
    without_runs,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def commands() -> list[tuple[str, ...]]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found += [(name, inner) for inner in command.commands]
        else:
            found.append((name,))
    return found


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that was refused."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def read_until(lines: Iterable[str], words: str) -> Iterator[str]:
    """Lines up to the first that holds the words, or to the end."""
    for line in lines:
        yield line
        if words in line:
            return


def test_the_commands_of_the_design_are_there() -> None:
    assert {("demo",), ("ingest",), ("materialize",), ("status",), ("champion", "show"), ("up",)} <= set(
        commands()
    )


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_and_option_has_help(command: tuple[str, ...]) -> None:
    group = typer.main.get_command(app)
    for name in command:
        assert isinstance(group, TyperGroup)
        group = group.commands[name]
    assert group.help
    for parameter in group.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        assert getattr(parameter, "help", None), f"{' '.join(command)}: {parameter.name}"
        if not isinstance(parameter, TyperArgument):
            assert parameter.opts[0].startswith("--")


def test_help_leads_to_the_first_command() -> None:
    done = bike_assets("--help")
    assert done.returncode == 0
    assert "bike-assets demo" in done.stdout
    for name, *_ in commands():
        assert name in done.stdout


@pytest.mark.parametrize("arguments", [("status",), ("champion", "show"), ("status", "--json")])
def test_a_home_that_is_not_there_is_refused_with_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    home = tmp_path / "nothing"
    line = refusal(bike_assets(*arguments, "--home", home))
    assert f"bike-assets demo --home {home}" in line
    assert not home.exists(), "looking makes nothing"


def test_an_unknown_source_lists_the_choices(tmp_path: Path) -> None:
    done = bike_assets("demo", "--source", "berlin", "--home", tmp_path)
    assert done.returncode == 2
    for text in ("berlin", "simulator", "archive"):
        assert text in done.stderr


def test_an_unknown_environment_lists_the_choices(tmp_path: Path) -> None:
    line = refusal(bike_assets("demo", "--home", tmp_path, env={"BIKE_ENV": "moon"}))
    for text in ("BIKE_ENV", "moon", "local", "compose", "prod"):
        assert text in line


def test_an_unknown_asset_lists_the_assets(tmp_path: Path) -> None:
    line = refusal(bike_assets("materialize", "row_counts", "--home", tmp_path / "home", env=TINY_CITY))
    assert "row_counts" in line
    assert "raw_counts" in line


def test_half_a_range_is_refused(tmp_path: Path) -> None:
    line = refusal(bike_assets("materialize", "raw_counts", "--from", "2024-10-20", "--home", tmp_path))
    assert "--from and --to" in line
    assert "--partition" in line


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        (
            ("--train-until", "2024-11-30", "--test-until", "2024-11-01"),
            "choose --train-until and --test-until",
        ),
        pytest.param(
            *(("--train-until", "2031-01-01"), "choose --train-until and --test-until"),
            marks=pytest.mark.slow,
        ),
        (("--train-until", "2024-08-01"), "days of history; training needs"),
        pytest.param(*(("--test-days", "150"), "days of history; training needs"), marks=pytest.mark.slow),
    ],
    ids=["tests end before training", "training ends after the counts", "little history", "long tests"],
)
def test_windows_that_do_not_fit_are_refused(tmp_path: Path, windows: tuple[str, ...], says: str) -> None:
    assert says in refusal(bike_assets("demo", *windows, "--home", tmp_path / "home"))


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_test_days_must_be_a_number_of_days(tmp_path: Path, value: str) -> None:
    done = bike_assets("demo", "--test-days", value, "--home", tmp_path)
    assert done.returncode == 2
    assert "--test-days" in done.stderr


def test_too_little_history_says_how_much_is_needed(tmp_path: Path) -> None:
    line = refusal(bike_assets("demo", "--home", tmp_path / "home", env=TINY_CITY))
    assert "training needs" in line or "does not fit" in line


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    """A file where the folder should be stops root too."""
    (tmp_path / "file").write_text("")
    line = refusal(bike_assets("demo", "--home", tmp_path / "file" / "home"))
    assert str(tmp_path / "file" / "home") in line
    assert "--home" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    line = refusal(bike_assets("ingest", "--home", home, env=TINY_CITY))
    assert "cannot be written" in line


@pytest.mark.slow
def test_a_home_without_a_champion_says_how_to_get_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = bike_assets(
        "materialize", "raw_counts", "--partition", "2024-10-20", "--home", home, env=TINY_CITY
    )
    assert done.returncode == 0, done.stderr
    line = refusal(bike_assets("champion", "show", "--home", home))
    assert "no champion yet" in line
    assert "bike-assets demo" in line
    status = one_json(bike_assets("status", "--home", home, "--json").stdout)
    assert status["champion"] is None
    assert [table["table"] for table in status["tables"]] == ["bike_traffic_raw.raw_counts"]


def test_status_and_champion_as_json_and_for_people(demo_home: DemoHome) -> None:
    status = one_json(bike_assets("status", "--home", demo_home.path, "--json").stdout)
    assert status["home"] == str(demo_home.path)
    rows = {table["table"]: table["rows"] for table in status["tables"]}
    assert rows["bike_traffic_raw.raw_counts"] == demo_home.result["rows_raw"]
    assert all(asset["run"] for asset in status["assets"])
    champion = one_json(bike_assets("champion", "show", "--home", demo_home.path, "--json").stdout)
    assert champion == status["champion"]
    assert champion["run_id"] == demo_home.result["champion"]["run_id"]
    shown = bike_assets("champion", "show", "--home", demo_home.path)
    assert shown.returncode == 0
    assert champion["bundle_id"] in shown.stdout


def test_progress_is_on_stderr_and_libraries_are_quiet(demo_home: DemoHome) -> None:
    lines = demo_home.stderr.splitlines()
    assert lines[0] == "reading the source"
    assert lines[-1] == "measuring"
    for chatter in ("Warning", "Traceback", "alembic", "dagster -", "invalid params"):
        assert chatter not in demo_home.stderr


@pytest.mark.slow
def test_a_second_command_on_the_same_home_waits_and_says_so(tmp_path: Path) -> None:
    home = tmp_path / "home"
    counts = ("materialize", "raw_counts", "--from", "2024-10-20", "--to", "2024-11-10", "--json")
    with started(*counts, "--home", home, env=TINY_CITY) as first:
        wait_for_step(home, "raw_counts", set(), first)
        first.send_signal(signal.SIGSTOP)  # it works for as long as the second one takes to start
        with started(*counts, "--home", home, env=TINY_CITY) as second:
            assert second.stderr is not None
            said = list(read_until(second.stderr, "another command is working on"))
            first.send_signal(signal.SIGCONT)
            stdout, stderr = first.communicate(timeout=60)
            _, said_later = second.communicate(timeout=120)
    assert first.returncode == 0, stderr
    assert one_json(stdout)["checks"]["failed"] == 0
    assert second.returncode == 0, (said, said_later)
    assert "another command is working on" in said[-1]
    assert "another command is working on" not in said_later
    assert len(run_logs(home)) == 2
    raw = tables(home)["bike_traffic_raw.raw_counts"]
    assert raw["service_date"].n_unique() == 22
    assert raw.is_unique().all()


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_two_demos_at_once(demo_home: DemoHome, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started("demo", "--home", home, "--json") as first:
        second = bike_assets("demo", "--home", home, "--json", timeout=1800)
        stdout, stderr = first.communicate(timeout=600)
    assert first.returncode == 0, stderr
    assert second.returncode == 0, second.stderr
    assert one_json(stdout)["accuracy"] == one_json(second.stdout)["accuracy"] == demo_home.result["accuracy"]
    assert_same_tables(without_runs(tables(home)), without_runs(tables(demo_home.path)))


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_hurts_no_table(demo_home: DemoHome, tmp_path: Path) -> None:
    """A home on a file system that has no room left: the tables stay as they were."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in demo_home.path.rglob("*") if path.is_file())
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size + 60_000_000}", "tmpfs", disk],
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        home = copy_home(demo_home.path, disk / "home")
        before = tables(home)
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(b"\0" * (free - 200_000))
        features = ("materialize", "features", "--from", "2024-11-01", "--to", "2024-12-31", "--home", home)
        done = bike_assets(*features)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")
        (disk / "filler").unlink()
        assert_same_tables(tables(home), before)
        again = bike_assets(*features)
        assert again.returncode == 0, again.stderr
        assert_same_tables(tables(home), before)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
