"""The documentation says what is there: settings, assets, checks, links, and numbers only with their command."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from bike_assets.core.metrics import INTERVAL_COLUMNS, accuracy_table
from bike_assets.settings import REPOSITORY, Settings

pytestmark = [
    # What Dagster and dbt import of their own past, and options of theirs that are beta: nothing a user could do.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning"),
]

REFERENCE = REPOSITORY / "docs" / "reference.md"
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "serving" / "README.md"]
)


def setting_rows() -> list[str]:
    """The rows of the settings table as the code has them."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if is_dataclass(default):
            continue
        if default in ((), "", None):
            text = "–"
        elif isinstance(default, Path) and default.is_absolute():
            text = f"`{default.relative_to(REPOSITORY)}` of the repository"
        else:
            text = f"`{default}`"
        rows.append(f"| `BIKE_{name.upper()}` | {text} | {field.description or _plain(name)} |")
    return rows


def _plain(name: str) -> str:
    return name.replace("_", " ").capitalize()


def section(title: str) -> list[str]:
    """The table rows of a section of the reference, without its head."""
    text = REFERENCE.read_text(encoding="utf-8").split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in text.splitlines() if line.startswith("| `")]


def names(rows: list[str]) -> list[str]:
    return [row.split("`")[1] for row in rows]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    from bike_assets.build import build_defs

    return build_defs(Settings(home=tmp_path_factory.mktemp("docs")))


def test_every_setting_is_documented_as_it_is() -> None:
    assert section("Settings") == setting_rows()


def test_every_bound_of_a_decision_is_documented_as_it_is() -> None:
    rows = section("Decisions")
    assert [tuple(row.split("|")[1:3]) for row in rows] == [
        (f" `BIKE_{name}_{bound.name}` ".upper(), f" `{getattr(field.default, bound.name)}` ")
        for name, field in Settings.model_fields.items()
        if is_dataclass(field.default)
        for bound in fields(field.default)
    ]


def test_every_asset_is_documented(definitions: dg.Definitions) -> None:
    graph = definitions.get_repository_def().asset_graph
    documented = names(section("Assets"))
    assert sorted(documented) == sorted(key.to_user_string() for key in graph.materializable_asset_keys)
    for row in section("Assets"):
        name = row.split("`")[1]
        daily = graph.get(dg.AssetKey(name)).partitions_def is not None
        assert ("| daily |" in row) == daily, row


def test_every_check_of_ours_is_documented(definitions: dg.Definitions) -> None:
    found = {
        f"{key.asset_key.to_user_string()}.{key.name}"
        for key in definitions.get_repository_def().asset_graph.asset_check_keys
    }
    documented = set(names(section("Checks")))
    assert documented <= found
    # dbt names its tests by model and column; the reference tells of them in one sentence.
    ours = {name for name in found if not re.search(r"\.(columns_of|unique|cleaned_counts|one_row)_", name)}
    assert documented == ours


def test_every_measure_is_documented() -> None:
    columns = ("hourly_count", "forecast", "mean4", "seasonal_naive", "mase_scale", *INTERVAL_COLUMNS)
    rows = pl.DataFrame({name: [1.0] for name in columns})
    documented = [name for row in section("Measures") for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(documented) == sorted(accuracy_table(rows).columns)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_begins_with_the_two_commands_and_the_picture() -> None:
    first_screen = (REPOSITORY / "README.md").read_text(encoding="utf-8")[:2000]
    for wanted in ("make demo", "make up", "docs/asset-graph.png"):
        assert wanted in first_screen
    assert (REPOSITORY / "docs" / "asset-graph.png").stat().st_size < 300_000


def test_every_decision_is_dated() -> None:
    pages = sorted((REPOSITORY / "docs" / "decisions").glob("0*.md"))
    assert pages
    for number, page in enumerate(pages, start=1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04d}-"), f"{page.name}: numbers run without gaps"
        assert text.startswith(f"# {number:04d} ")
        assert re.search(r"^20\d\d-\d\d-\d\d$", text, re.MULTILINE), page.name
