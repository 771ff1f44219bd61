"""The page in a real browser: opened, clicked, filtered, printed, photographed; any complaint of the console fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from report_browser import Browser, find_browser

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH; apt-get install chromium, or set ASRCL_BROWSER")

SHOWN = "[...document.querySelectorAll('#scenario1-examples > li')].length"
COUNT = "document.getElementById('scenario1-count').textContent"
FORM = "document.querySelector('form[data-examples]')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BROWSER is not None
    with Browser(BROWSER, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.events.clear()
    browser.resize(1280, 900)
    browser.open(page)
    yield browser
    assert browser.complaints() == []


def choose(browser: Browser, field: str, value: str) -> None:
    browser.run(f"{FORM}.elements.{field}.value = '{value}'; {FORM}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def test_methods_are_hidden_and_shown_everywhere(opened: Browser) -> None:
    visible = "[...document.querySelectorAll('[data-m=ft]')].filter(e => getComputedStyle(e).display !== 'none').length"
    before = opened.run(visible)
    assert before > 10
    opened.click("[data-toggle=ft]")
    assert opened.run(visible) == 0
    assert opened.run("document.querySelector('[data-toggle=ft]').getAttribute('aria-pressed')") == "false"
    opened.click("#all")
    assert opened.run(visible) == before


def test_tables_are_sorted_by_mouse_and_by_keyboard(opened: Browser) -> None:
    first = "document.querySelector('table.sortable tbody th').textContent"
    column = "[...document.querySelectorAll('table.sortable')][0].querySelectorAll('thead th')[3]"
    values = "[...document.querySelectorAll('table.sortable')][0].tBodies[0].rows"
    opened.run(f"{column}.querySelector('button').id = 'third'; 0")
    opened.click("#third")
    rising = opened.run(f"[...{values}].map(row => Number(row.cells[3].dataset.v))")
    assert rising == sorted(rising) and opened.run(f"{column}.getAttribute('aria-sort')") == "ascending"
    opened.run("document.getElementById('third').focus()")
    opened.press("Enter", 13)
    falling = opened.run(f"[...{values}].map(row => Number(row.cells[3].dataset.v))")
    assert falling == sorted(falling, reverse=True) and opened.run(first)


def test_examples_are_filtered(opened: Browser) -> None:
    assert opened.run(SHOWN) == 10 and opened.run(COUNT) == "10 of 60 matching utterances"
    opened.click("#scenario1-more")
    assert opened.run(SHOWN) == 20
    choose(opened, "domain", "1")
    assert opened.run(COUNT) == "10 of 12 matching utterances"
    speakers = opened.run(f"[...{FORM}.elements.speaker.options].map(o => o.text)")
    assert speakers[0] == "all" and len(speakers) == 9 and all(name.startswith("eng-") for name in speakers[1:])
    choose(opened, "speaker", f"={speakers[1]}")
    about = opened.run("[...document.querySelectorAll('#scenario1-examples .about')].map(e => e.textContent)")
    assert about and all(f"ENG · {speakers[1]} ·" in line for line in about)
    choose(opened, "domain", "2")
    assert opened.run(f"{FORM}.elements.speaker.value") == ""
    choose(opened, "text", "zebra")
    assert opened.run(SHOWN) == 0 and opened.run(COUNT) == "0 of 0 matching utterances"
    choose(opened, "text", "")
    choose(opened, "method", "1")
    assert opened.run("[...document.querySelectorAll('#scenario1-examples li:first-child dt')].map(e => e.textContent)") == [
        "reference",
        "Fine-tuning (FT)",
    ]
    worst = opened.run("[...document.querySelectorAll('#scenario1-examples .errors')].map(e => parseInt(e.textContent))")
    assert worst == sorted(worst, reverse=True)


def test_alignments_are_coloured_and_complete(opened: Browser) -> None:
    script = """(() => { const data = JSON.parse(document.getElementById('scenario1-data').textContent);
      const line = document.querySelector('#scenario1-examples dd:nth-of-type(2)');
      const id = document.querySelector('#scenario1-examples .about').textContent.split(' · ')[2];
      const item = data.items.find(item => item.i === id);
      const marks = ['S', 'D', 'I'].map(kind => line.querySelectorAll('b.' + kind).length);
      return [marks, ['S', 'D', 'I'].map(kind => [...item.h[0][1]].filter(x => x === kind).length),
        [...line.childNodes].filter(n => !['D', 'errors'].includes(n.className)).map(n => n.textContent).join('').trim()
          .split(/\\s+/).join(' '), item.h[0][0]]; })()"""
    marks, expected, words, hypothesis = opened.run(script)
    assert marks == expected and sum(marks) and words == hypothesis


def test_the_page_fits_a_phone(opened: Browser, tmp_path: Path) -> None:
    opened.resize(360, 740, phone=True)
    assert opened.run("document.documentElement.scrollWidth") <= 360
    small = opened.run(
        "[...document.querySelectorAll('main button, main select, .methods button')]"
        ".filter(e => e.offsetParent && !e.closest('th'))"
        ".map(e => e.getBoundingClientRect().height).filter(height => height < 28).length"
    )
    assert small == 0
    letters = "[...document.querySelectorAll('svg.chart text')].map(e => e.getBoundingClientRect().height).filter(h => h > 0)"
    assert min(opened.run(letters)) >= 9
    assert opened.picture(tmp_path / "phone.png").stat().st_size > 10_000


def test_everything_can_be_reached_by_keyboard(opened: Browser) -> None:
    reached = set()
    for _ in range(60):
        opened.press("Tab", 9)
        reached.add(opened.run("document.activeElement.className || document.activeElement.tagName"))
    assert {"skip", "A", "BUTTON", "scroll", "SUMMARY"} <= reached
    assert opened.run("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_paper_holds_what_is_folded_away(opened: Browser, tmp_path: Path) -> None:
    assert opened.run("document.querySelectorAll('details:not([open])').length") > 0
    assert opened.paper(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    opened.run("dispatchEvent(new Event('beforeprint'))")
    assert opened.run("document.querySelectorAll('details:not([open])').length") == 0
    opened.run("dispatchEvent(new Event('afterprint'))")
    assert opened.run("document.querySelectorAll('details:not([open])').length") > 0


def test_no_heading_stands_alone_on_paper_and_no_figure_is_cut(opened: Browser) -> None:
    def kept(selector: str, rule: str) -> set[str]:
        return set(opened.run(f"[...document.querySelectorAll('{selector}')].map(e => getComputedStyle(e).{rule})"))

    opened.send("Emulation.setEmulatedMedia", media="print")
    try:
        first = "tbody tr:first-child:not(:last-child)"
        for heading in ("h3", "h3 + p", "details[open] > summary", "details > p.small", ".legend", first):
            assert kept(heading, "breakAfter") == {"avoid"}, heading
        for whole in ("figure", ".command", "tr", ".examples > li"):
            assert kept(whole, "breakInside") == {"avoid"}, whole
        assert kept("tbody tr:last-child", "breakAfter") == {"auto"}
        assert kept(".under", "breakBefore") == {"avoid"} and kept(".under", "breakAfter") == {"auto"}
        assert kept(".filters", "display") == {"none"} and kept(".figures, .heats", "display") == {"block"}
    finally:
        opened.send("Emulation.setEmulatedMedia", media="")


def test_charts_and_tables_have_names(opened: Browser, tmp_path: Path) -> None:
    assert opened.run("[...document.querySelectorAll('svg.chart')].every(e => e.getAttribute('aria-label'))")
    assert opened.run("[...document.querySelectorAll('th')].every(e => e.scope)")
    assert opened.run("[...document.querySelectorAll('.scroll')].every(e => e.getAttribute('aria-label') && e.tabIndex === 0)")
    assert opened.picture(tmp_path / "whole.png", whole=True).stat().st_size > 100_000
