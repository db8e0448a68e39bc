"""What a suite found, as a page to read: every rule, what was observed, and the failing rows.

Belongs here: HTML that opens anywhere, without scripts and without a network. Great Expectations' own pages load a
dozen of each from other people's servers. Does not belong here: running the rules (see `expectations`).
"""

import re
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

from bike_assets.assets.evidently_report import write_atomically
from bike_assets.checks.expectations import FailedExpectation, SuiteResult

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .9rem }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left; vertical-align: top }
.broken { color: #b03a2e; font-weight: 600 } .kept { color: #2e7d32 }
"""


def write_report(
    folder: Path, result: SuiteResult, first: date | None, last: date | None, contract: str
) -> Path:
    """Write the page of a suite's result and the index of all pages.

    Args:
        folder: where the pages of all suites are; a subfolder a suite.
        result: what was found.
        first: first day that was checked.
        last: last day that was checked; names the page.
        contract: the table, as `schema.name`.

    Returns:
        The page.
    """
    page = folder / result.suite / f"{last or 'empty'}.html"
    write_atomically(page, render_result(result, first, last, contract))
    write_atomically(folder / "index.html", render_index(folder))
    return page


def render_result(result: SuiteResult, first: date | None, last: date | None, contract: str) -> str:
    """The page of one result."""
    rules = [
        *(_row("broken", failure.column, failure.rule, failure.observed) for failure in result.failures),
        *(_row("kept", rule.column, rule.text, "") for rule in result.kept),
        *(_row("not evaluated", rule.column, rule.text, "column or rows missing") for rule in result.unread),
    ]
    state = "passed" if result.passed else f"{len(result.failures)} broken"
    body = [
        f"<p>{first} to {last} · {result.n_rows:,} rows of {escape(contract)} · {result.evaluated} rules evaluated</p>",
        "<h2>Rules</h2><table><tr><th></th><th>column</th><th>rule</th><th>observed</th></tr>",
        *rules,
        "</table>",
        *(_failing_rows(failure) for failure in result.failures if failure.sample),
        '<p><a href="../index.html">All results</a></p>',
    ]
    return _page(f"{result.suite}: {state}", "\n".join(body))


def render_index(folder: Path) -> str:
    """Every result that stands in the folder, the newest days first."""
    parts = []
    for suite in sorted(path for path in folder.iterdir() if path.is_dir()):
        items = []
        for page in sorted(suite.glob("*.html"), reverse=True):
            title = re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8")[:400])
            state = title[1].partition(": ")[2] if title else ""
            link = f"{suite.name}/{page.name}"
            kind = "kept" if state == "passed" else "broken"
            items.append(
                f'<tr><td><a href="{escape(link)}">{escape(page.stem)}</a></td><td class="{kind}">{state}</td></tr>'
            )
        parts.append(f"<h2>{escape(suite.name)}</h2><table>{''.join(items)}</table>")
    return _page("Data quality", "\n".join(parts))


def _row(kind: str, column: str, rule: str, observed: str) -> str:
    cells = "".join(f"<td>{escape(text)}</td>" for text in (column, rule, observed))
    return f'<tr><td class="{kind}">{kind}</td>{cells}</tr>'


def _failing_rows(failure: FailedExpectation) -> str:
    names = list(failure.sample[0])
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(_text(row[name]))}</td>' for name in names)}</tr>"
        for row in failure.sample
    )
    title = f"{failure.column}: {failure.rule}"
    shown = len(failure.sample)
    return f"<h3>{escape(title)}</h3><p>The first {shown} of them</p><table><tr>{head}</tr>{rows}</table>"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
