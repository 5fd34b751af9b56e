"""The report in headless Chromium: sorting, filters, diffs, themes, keyboard, hostile answers, size."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from needed import missing

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "comparison"))

from chromium_pipe import Browser, find_chromium
from comparison_runs import LABELS, write_all, write_eval, write_lines

from onpol_cli.comparison.compare import Comparison, compare
from onpol_cli.comparison.report.build import Page, build

ROOT = Path(__file__).parents[2]
POISON = (
    "```python\nx = 1 </script><script>window.hacked = 1</script>\n```\n<img src=x onerror='window.hacked=1'>"
    "<!--<script>{{DATA}}</textarea></pre><iframe src='https://example.com'></iframe>\u2028javascript:alert(1)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    binary = find_chromium()
    if binary is None:
        missing("no Chromium found: apt-get install chromium")
    with Browser(binary, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of five models with a hostile answer, statement and problem name."""
    root = tmp_path_factory.mktemp("report")
    paths = write_all(root / "runs", problems=30, poison=POISON)
    for path in paths:
        rows = [json.loads(line) for line in (path / "problems.jsonl").read_text().splitlines()]
        rows[0]["statement"] = POISON
        write_lines(path / "problems.jsonl", rows)
    compare(paths, ROOT / "conf" / "claims" / "paper.yaml", html=root / "report.html")
    return root / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path) -> Browser:
    """The report, freshly loaded, events forgotten."""
    browser.events.clear()
    browser.open(report.as_uri())
    return browser


def first_cells(page: Browser, table: str) -> list[str]:
    """First column of a table, in shown order."""
    rows = f"document.querySelector('table[data-name=\"{table}\"]').tBodies[0].rows"
    return list(page.js(f"[...{rows}].map(row => row.cells[0].textContent)"))


def head(table: str, column: int) -> str:
    """JavaScript of a header cell."""
    return f"document.querySelector('table[data-name=\"{table}\"]').tHead.rows[0].cells[{column}]"


def count(page: Browser) -> int:
    """Problems left by the filters."""
    return int(page.js("document.getElementById('count').textContent").split()[0].replace(",", ""))


def choose(page: Browser, select: str, value: object) -> None:
    """Set a filter and tell the page."""
    page.js(
        f"(() => {{ const s = document.getElementById('{select}'); s.value = '{value}';"
        "s.dispatchEvent(new Event(s.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true})); })()"
    )


def data(report: Path) -> dict[str, list[object]]:
    """What is embedded in the file."""
    packed = report.read_text(encoding="utf-8").split('id="data">', 1)[1].split("</script>", 1)[0]
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_columns_sort_both_ways(page: Browser) -> None:
    name = "scores-tiny-edit-ood-t1"
    before = first_cells(page, name)
    assert before[0] == "base"
    page.js(f"{head(name, 2)}.querySelector('button').click()")
    rising = first_cells(page, name)
    assert page.js(f"{head(name, 2)}.getAttribute('aria-sort')") == "ascending"
    page.js(f"{head(name, 2)}.querySelector('button').click()")
    assert first_cells(page, name) == rising[::-1]
    assert rising[-1] == "SFT" and sorted(rising) == sorted(before)


def test_keyboard_sorts_and_moves(page: Browser) -> None:
    name = "scores-tiny-edit-ood-t1"
    page.js(f"{head(name, 1)}.querySelector('button').focus()")
    page.key("Enter", 13)
    assert page.js(f"{head(name, 1)}.getAttribute('aria-sort')") == "ascending"
    page.key("Tab", 9)
    assert page.js(f"document.activeElement === {head(name, 2)}.querySelector('button')")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.js("document.getElementById('list').focus()")
    for _ in range(3):
        page.key("ArrowDown", 40)
    assert page.js("document.querySelector('.item[aria-selected=\"true\"] .id').textContent") == "tiny-edit-ood/3"
    assert page.js("document.querySelector('#detail-head h3').textContent") == "tiny-edit-ood/3"
    page.key("End", 35)
    assert page.js("document.querySelector('#detail-head h3').textContent") == "tiny-codegen/29"


def test_everything_interactive_can_be_reached_by_tab(page: Browser) -> None:
    hidden = "[...document.querySelectorAll('button, select, input, summary, a')].filter(e => e.tabIndex < 0).length"
    assert page.js(hidden) == 0
    page.js("document.activeElement.blur()")
    page.key("Tab", 9)
    assert page.js("document.activeElement.className") == "skip"


def test_filters_agree_with_the_data(page: Browser, report: Path) -> None:
    embedded = data(report)
    passed = embedded["outcomes"].index("passed")
    a, b = embedded["answers"][1], embedded["answers"][2]
    assert isinstance(a, list) and isinstance(b, list)
    wanted = sum(x[0] == passed != y[0] for x, y in zip(a, b, strict=True))
    for select, value in (("f-a", 1), ("f-a-state", "passed"), ("f-b", 2), ("f-b-state", "not")):
        choose(page, select, value)
    assert count(page) == wanted > 0
    choose(page, "f-b", ""), choose(page, "f-a-state", "over")
    assert count(page) == sum(x[0] == passed and x[2] is not None and x[2] > 0.1 for x in a)
    choose(page, "f-over", 0.99)
    page.wait("document.getElementById('count').textContent.startsWith('0 ')")
    assert "No problem matches" in page.js("document.getElementById('detail-head').textContent")
    page.js("document.getElementById('f-reset').click()")
    page.wait("document.getElementById('count').textContent.startsWith('60 ')")
    choose(page, "f-family", 0)
    assert count(page) == 8
    page.js("document.getElementById('f-reset').click()")
    choose(page, "f-text", "variant 17)")
    page.wait("document.getElementById('count').textContent.startsWith('2 ')")


def test_diff_marks_the_corruption_and_its_reversal(page: Browser) -> None:
    choose(page, "f-text", "tiny-edit-ood/7")
    page.wait("document.getElementById('count').textContent.startsWith('1 ')")
    cards = page.js("[...document.querySelectorAll('.card .name')].map(e => e.textContent)")
    assert cards[:2] == ["Corrupted (given)", "Original, against corrupted"]
    assert [name.rsplit(" (", 1)[0] for name in cards[2:]] == list(LABELS)
    original = "document.querySelectorAll('.card')[1]"
    assert page.js(f"[...{original}.querySelectorAll('.row.cut')].map(e => e.textContent.trim())") == ["if x <= limit:"]
    assert page.js(f"[...{original}.querySelectorAll('.row.add')].map(e => e.textContent.trim())") == ["if x < limit:"]
    assert page.js(f"{original}.querySelector('del').textContent") == "="
    assert page.js("document.querySelectorAll('.card .badge').length") == len(LABELS)
    assert "reward" in page.js("document.querySelectorAll('.card .grades')[0].textContent")
    page.js("document.querySelector('#shown input').click()")
    assert len(page.js("[...document.querySelectorAll('.card .name')].map(e => e.textContent)")) == len(cards) - 1


def test_dark_and_light(page: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.js("document.getElementById('theme-name').textContent === 'auto' || localStorage.clear()")
    seen = {}
    for system in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": system}])
        seen[system] = page.js(ground)
    assert seen["light"] != seen["dark"]
    toggled = []
    for _ in range(3):
        page.js("document.getElementById('theme').click()")
        toggled.append((page.js("document.getElementById('theme-name').textContent"), page.js(ground)))
    assert toggled == [("light", seen["light"]), ("dark", seen["dark"]), ("auto", seen["dark"])]
    page.call("Emulation.setEmulatedMedia", features=[])


def test_hostile_answers_stay_text(page: Browser) -> None:
    page.call("Page.bringToFront")
    shown = page.js("document.getElementById('cards').textContent")
    assert "</script><script>window.hacked = 1</script>" in shown and "onerror='window.hacked=1'" in shown
    assert POISON in page.js("document.querySelector('.statement').textContent")
    page.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.js("window.hacked === undefined")
    assert page.js("document.querySelectorAll('iframe, img, main script').length") == 0
    # Even markup that got into the page could not run: the policy allows only the shipped script.
    page.js("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 2'}))")
    assert page.js("window.hacked === undefined")


def test_nothing_leaves_the_page(page: Browser, report: Path) -> None:
    choose(page, "f-a", 1)
    page.js("document.getElementById('theme').click(); document.getElementById('theme').click()")
    page.js("document.getElementById('theme').click()")
    outside = [url for url in page.requests() if url != report.as_uri() and not url.startswith("data:image/png")]
    assert outside == []
    assert page.complaints() == []


def test_narrow_window_does_not_overflow(page: Browser) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=420, height=800, deviceScaleFactor=1, mobile=False)
    assert page.js("document.documentElement.scrollWidth <= window.innerWidth + 1")
    page.call("Emulation.clearDeviceMetricsOverride")


def big(tmp_path: Path) -> Comparison:
    """2,000 problems x 6 models."""
    paths = [write_eval(tmp_path, label, 0, problems=1000, train=False) for label in LABELS]
    return compare([*paths, write_eval(tmp_path, "RL", 1, problems=1000, train=False)])


def test_two_thousand_problems_load_quickly(browser: Browser, tmp_path: Path) -> None:
    comparison = big(tmp_path)
    path = tmp_path / "big.html"
    path.write_text(build(Page("big", comparison.scores, comparison.sections, [], [])), encoding="utf-8")
    times = []
    for _ in range(3):
        browser.open(path.as_uri())
        times.append(float(browser.js("document.documentElement.dataset.readyMs")) / 1000)
    assert count(browser) == 2000
    assert browser.js("document.querySelectorAll('.item').length") < 100, "the list must be virtual"
    # The promise is 2 s on a free machine; a busy one proves nothing about it.
    free = os.getloadavg()[0] < 0.5 * (os.cpu_count() or 1)
    assert min(times) < (2.0 if free else 30.0), times


def test_committed_tiny_report(browser: Browser) -> None:
    path = ROOT / "results" / "tiny" / "report.html"
    assert path.stat().st_size < 3_000_000
    browser.events.clear()
    browser.open(path.as_uri())
    assert count(browser) == 1500
    shown = browser.js("[...document.querySelectorAll('.shown input:checked')].length")
    assert browser.js("document.querySelectorAll('.item[aria-selected=\"true\"] .mark').length") == shown == 8
    assert browser.complaints() == []
    assert [url for url in browser.requests() if url != path.as_uri() and not url.startswith("data:image/png")] == []


def test_committed_tiny_report_names_no_place_of_the_machine_that_made_it() -> None:
    path = ROOT / "results" / "tiny" / "report.html"
    page = path.read_text(encoding="utf-8").split('id="data">', 1)[0]
    place = re.compile(r"(?:^|[\s\"'=:])(/[\w.-]+/[\w./-]+)", re.MULTILINE)
    assert place.findall(page) == []
    assert [text for text in data(path)["texts"] if place.search(str(text))] == []
