"""Policy files: what they name is used, what they get wrong is one line that says so."""

from pathlib import Path

import pytest

from bike_assets.core.errors import PermanentError
from bike_assets.policies import Policies


def file(folder: Path, text: str, name: str = "strict.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_named_is_used_and_the_rest_keeps_its_default(tmp_path: Path) -> None:
    toml = Policies().read(file(tmp_path, "[retraining]\nr2_critical = 0.6\n[monitoring]\nsudden_z = 5\n"))
    yaml = Policies().read(
        file(tmp_path, "retraining: {r2_critical: 0.6}\nmonitoring: {sudden_z: 5}\n", "strict.yaml")
    )
    assert toml == yaml
    assert (toml.name, toml.retraining.r2_critical, toml.monitoring.sudden_z) == ("strict", 0.6, 5.0)
    assert toml.promotion == Policies().promotion
    assert toml.thresholds()["retraining"]["r2_critical"] == 0.6


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("[drifts]\n", "a.toml", r"no section drifts; use monitoring, retraining, promotion"),
        ("[monitoring]\nz = 3\n", "a.toml", "monitoring has no threshold z; it has column_distance"),
        (
            "[retraining]\ncooldown_days = 1.5\n",
            "a.toml",
            "retraining.cooldown_days is 1.5; give a value like 7",
        ),
        ("[retraining]\nr2_critical = 'low'\n", "a.toml", "r2_critical is 'low'"),
        ("[promotion]\nrequire_approval = 1\n", "a.toml", "require_approval is 1"),
        ("[retraining]\nr2_critical = 0.9\n", "a.toml", "a.toml: retraining policy: r2_critical 0.9"),
        ("[monitoring\n", "a.toml", "a.toml is not TOML"),
        ("monitoring: [", "a.yaml", "a.yaml is not YAML"),
        ("- 3", "a.yml", "give sections"),
        ("monitoring: 3", "a.yml", "monitoring is 3; give thresholds by name"),
        ("", "a.json", "ends in .toml, .yaml or .yml"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, name: str, problem: str) -> None:
    with pytest.raises(PermanentError, match=problem):
        Policies().read(file(tmp_path, text, name))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="cannot be read"):
        Policies().read(tmp_path / "none.toml")
