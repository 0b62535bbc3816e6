"""The report in a real browser: quiet, offline, sortable, and readable without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .browser import Browser, chromium, find_chromium
from .report_tree import LABELS, Tree

WIDTHS = (390, 1400)


@pytest.fixture(scope="session")
def page(tree: Tree) -> Path:
    """Return a report in a folder whose name has to be quoted in a link."""
    return tree.root / "report.html"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return a running browser; without one, every test here is skipped."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: `make browser` installs Debian's")
    with chromium(program) as running:
        # Scrolling that takes its time would still be on its way when a test looks.
        running.media(prefers_reduced_motion="reduce")
        yield running


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("script", [True, False])
def test_the_page_is_quiet_and_asks_the_network_for_nothing(
    browser: Browser, page: Path, width: int, script: bool
) -> None:
    browser.open(page, width, script=script)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]


def test_the_browser_would_report_an_error_and_a_request(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nothing.here()</script><img src=missing.png>", encoding="utf-8")
    browser.open(broken, 390)
    assert any("Uncaught" in text for text in browser.complaints())
    assert any(url.endswith("missing.png") for url in browser.requests())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window_and_text_has_contrast(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    browser.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    browser.open(page, width)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    colours = browser.run(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name]).join('|')"
    )
    text, ground = (luminance(colour) for colour in colours.split("|"))
    assert (text < ground) == (scheme == "light")
    # WCAG's ratio for its strictest level.
    assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 7


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` as WCAG defines it."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_link_resolves(browser: Browser, page: Path) -> None:
    browser.open(page, 1400)
    links = browser.run("[...document.links].map(a => a.getAttribute('href')).join('\\n')")
    for link in set(links.split("\n")):
        if link.startswith("#"):
            assert browser.run(f"document.getElementById({link[1:]!r}) !== null"), link
        else:
            assert browser.run(f"new URL({link!r}, location).protocol") == "file:"
            path = browser.run(f"decodeURIComponent(new URL({link!r}, location).pathname)")
            assert Path(path).exists(), link


@pytest.mark.parametrize("script", [True, False])
def test_a_link_to_a_run_opens_it(browser: Browser, page: Path, script: bool) -> None:
    browser.open(page, 390, script=script)
    target = "document.querySelector('details.run .about')"
    assert not browser.run(f"{target}.parentElement.open")
    browser.run("document.querySelector('td a.number').click()")
    browser.run("new Promise(done => setTimeout(done, 100))")
    opened = "document.querySelector('details.run[open] .about')"
    assert browser.run(f"{opened}.id === decodeURIComponent(location.hash.slice(1))")
    top = browser.run(f"{opened}.getBoundingClientRect().top")
    assert -5 <= top < 900


def column(browser: Browser, index: int) -> list[float]:
    """Return a column of the first sortable table as it is sorted, empty entries as infinity."""
    cells = (
        f"[...document.querySelector('table.sortable').tBodies[0].rows].map(r => r.cells[{index}]"
    )
    found = browser.run(f"{cells}.dataset.value ?? '').join('|')")
    return [float(value or "inf") for value in found.split("|")]


@pytest.mark.parametrize("width", [1400])
def test_tables_sort_by_a_click_on_a_columns_head(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    before = column(browser, 2)
    for order in ("ascending", "descending"):
        browser.run("document.querySelectorAll('table.sortable thead button')[2].click()")
        after = column(browser, 2)
        assert after == sorted(before, reverse=order == "descending") != before
        head = "document.querySelector('table.sortable').tHead.rows[0].cells[2]"
        assert browser.run(f"{head}.getAttribute('aria-sort')") == order
    # Published numbers: rows without one stay last in both orders.
    for _ in range(2):
        browser.run("document.querySelectorAll('table.sortable thead button')[1].click()")
        published = column(browser, 1)
        assert published.count(float("inf")) == 2
        assert published[-2:] == [float("inf")] * 2


def test_predictions_can_be_put_in_order(browser: Browser, page: Path) -> None:
    browser.open(page, 1400)
    articles = "[...document.querySelectorAll('article')]"
    spreads = browser.run(f"{articles}.map(a => Number(a.dataset.spread)).join(' ')")
    assert [float(s) for s in spreads.split()] == sorted(map(float, spreads.split()), reverse=True)
    options = browser.run(
        "[...document.getElementById('order').options].map(o => o.text).join('|')"
    )
    names = options.split("|")
    assert {f"best first: {label}" for label in LABELS.values()} <= set(names)
    for name, key, reverse in (
        ("image number", "a.dataset.image", False),
        (f"best first: {LABELS['pissa']}", "a.dataset.scores.split(' ')[1]", True),
    ):
        browser.run(
            "{ const choice = document.getElementById('order');"
            f" choice.value = {names.index(name)}; choice.dispatchEvent(new Event('change')); }}"
        )
        values = [float(v) for v in browser.run(f"{articles}.map(a => {key}).join(' ')").split()]
        assert values == sorted(values, reverse=reverse) and len(set(values)) > 5


def test_without_javascript_everything_can_be_read(browser: Browser, page: Path) -> None:
    browser.open(page, 390, script=False)
    # What a script would add is not there, what it would change is still as the file says.
    shown = page.read_text(encoding="utf-8")
    assert shown.count("<article") == 40
    height = "document.querySelector('{}').getBoundingClientRect().height"
    for selector in ("#table2", "article:last-of-type", "figure img", ".claims li", ".curve"):
        if selector == ".curve":
            browser.run("document.querySelector('details.run').open = true")
        assert browser.run(height.format(selector)) > 10, selector
    assert browser.run("document.querySelectorAll('thead button, select').length") == 0


def test_in_print_the_contents_are_gone_and_the_text_is_black(browser: Browser, page: Path) -> None:
    browser.open(page, 1400)
    browser.media(media="print", prefers_color_scheme="dark")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.media(media="", prefers_reduced_motion="reduce")
