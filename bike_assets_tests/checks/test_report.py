"""The page of a suite's result: every rule on it, failing rows shown and escaped, nothing fetched from anywhere."""

from datetime import date
from pathlib import Path

from bike_assets.checks.expectations import FailedExpectation, Rule, SuiteResult
from bike_assets.checks.report import write_report

DAY = date(2024, 1, 10)
KEPT = Rule("ExpectColumnValuesToNotBeNull", "is never null", ("ts_utc",), "rows", {"column": "ts_utc"})
BROKEN = FailedExpectation(
    "ExpectColumnValuesToBeBetween",
    "hourly_count",
    "is at least 0",
    2,
    0.5,
    "2 rows, 50.0 %",
    (
        {"counter_id": "<script>x</script>", "hourly_count": -1},
        {"counter_id": "b", "hourly_count": -2.123456},
    ),
)


def result(*failures: FailedExpectation, unread: tuple[Rule, ...] = ()) -> SuiteResult:
    return SuiteResult("cleaned_counts", not failures, 4, 2, len(unread), failures, (KEPT,), unread)


def test_the_page_holds_every_rule_and_the_failing_rows(tmp_path: Path) -> None:
    page = write_report(tmp_path, result(BROKEN, unread=(KEPT,)), DAY, DAY, "schema.table")

    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "cleaned_counts" / "2024-01-10.html"
    assert "<title>cleaned_counts: 1 broken</title>" in text
    for wanted in (
        "is at least 0",
        "2 rows, 50.0 %",
        "is never null",
        "not evaluated",
        "-2.123",
        "schema.table",
    ):
        assert wanted in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "http" not in text


def test_the_index_leads_to_every_page_and_says_how_it_went(tmp_path: Path) -> None:
    write_report(tmp_path, result(BROKEN), DAY, DAY, "t")
    write_report(tmp_path, result(), DAY, date(2024, 1, 11), "t")
    write_report(tmp_path, result(), None, None, "t")

    index = (tmp_path / "index.html").read_text(encoding="utf-8")

    for page, state in (("2024-01-10", "1 broken"), ("2024-01-11", "passed"), ("empty", "passed")):
        assert f'<a href="cleaned_counts/{page}.html">{page}</a>' in index
        row = index.split(f"cleaned_counts/{page}.html", 1)[1].split("</tr>", 1)[0]
        assert state in row
    assert index.index("2024-01-11") < index.index("2024-01-10")


def test_writing_again_replaces_the_page(tmp_path: Path) -> None:
    write_report(tmp_path, result(BROKEN), DAY, DAY, "t")
    page = write_report(tmp_path, result(), DAY, DAY, "t")

    assert "broken" not in page.read_text(encoding="utf-8").split("</style>")[1]
    assert len(list(page.parent.iterdir())) == 1
