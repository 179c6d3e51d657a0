"""The page in a real browser: from a file, without a network, on a desk and on a phone."""

import shutil

import pytest

from hallmark.report.cli import main
from hallmark.report.rows import merge
from synthetic_matrix import REASON, matrix_rows
from synthetic_rows import wpe_rows

api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
FINGER = 44
"""Least side of what a finger hits, CSS pixels (WCAG 2.2, success criterion 2.5.5)."""
PATIENCE = 180_000
"""Milliseconds for what takes one on a machine that does nothing else."""
MATRIX = "#table-matrix_cpu_encoders"
CELLS = "#table-matrix_cpu_cells"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    rows = [*matrix_rows(), *wpe_rows("cpu", (0,), ("simclr",), ("linear_probe",))]
    merge(root / "results" / "runs.csv", rows)
    assert main(["--results", str(root / "results")]) == 0
    return (root / "results" / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as tools:
        try:
            made = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium here (Debian's package chromium will do): {str(error).splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture(params=[{"viewport": {"width": 1280, "height": 900}}, PHONE], ids=["desk", "phone"])
def page(browser, address, request):
    """The open page; whatever it complains of or asks for fails the test."""
    context = browser.new_context(**request.param)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda asked: complaints.append(asked.url) if asked.url != address else None)
    opened.goto(address)
    yield opened
    context.close()
    assert complaints == []


def texts(page, table: str, column: int) -> list[str]:
    """The shown texts of one column, from above to below."""
    cells = page.locator(f"{table} tbody tr:not([hidden]) td:nth-child({column + 1})")
    return cells.all_inner_texts()


def heads(page, table: str) -> list[str]:
    return page.locator(f"{table} thead th").all_inner_texts()


def test_filter_leaves_the_lines_with_all_words(page):
    everything = texts(page, CELLS, 0)
    box = page.get_by_role("searchbox", name="Filter Every attack at every strength")
    box.fill("wpe labels EXTRACT")
    assert texts(page, CELLS, 0) == ["wpe"] * 2
    assert page.locator(f"{CELLS}").locator("xpath=../preceding-sibling::div[1]/output").inner_text() == (
        f"2 of {len(everything)} lines"
    )
    box.fill("no such word")
    assert texts(page, CELLS, 0) == []
    box.fill("")
    assert texts(page, CELLS, 0) == everything
    box.fill("<both>")
    assert any(REASON in text for text in texts(page, CELLS, heads(page, CELLS).index("mark")))


def test_headings_sort_numbers_as_numbers_and_leave_blanks_at_the_end(page):
    column = heads(page, CELLS).index("strength")
    button = page.locator(f"{CELLS} thead th").nth(column).get_by_role("button")
    for order, reverse in (("ascending", False), ("descending", True)):
        button.click()
        assert page.locator(f"{CELLS} thead th").nth(column).get_attribute("aria-sort") == order
        values = [float(text) for text in texts(page, CELLS, column)]
        assert values == sorted(values, reverse=reverse)
        assert len(set(values)) > 5
    cost = heads(page, MATRIX).index("finetune")
    for rising in (True, False):
        page.locator(f"{MATRIX} thead th").nth(cost).get_by_role("button").click()
        shown = texts(page, MATRIX, cost)
        known = [float(text.split()[0]) for text in shown if "%" in text]
        assert known == sorted(known, reverse=not rising)
        assert len(known) == 3
        assert all("%" in text for text in shown[:3]), "what has no cost stays behind"


def test_the_body_never_scrolls_sideways_and_wide_things_do_in_their_box(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
    assert "width=device-width" in page.locator("meta[name=viewport]").get_attribute("content")
    box = page.locator(f".scroll:has({CELLS})")
    if page.viewport_size["width"] < 400:
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        box.evaluate("box => { box.scrollLeft = 200; }")
        name = page.locator(f"{CELLS} tbody td").first.bounding_box()
        assert name["x"] == pytest.approx(box.bounding_box()["x"], abs=2), "the name stays in sight"


def test_fingers_hit_what_they_aim_at(page):
    if page.viewport_size["width"] > 400:
        pytest.skip("a mouse is finer")
    for target in (
        *page.locator("thead button").all()[:40],
        *page.locator("input").all(),
        *page.locator("nav a").all(),
    ):
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= FINGER, target.inner_text()


def test_keys_reach_and_work_everything(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "the way past is seen when it has the focus"
    head = page.locator(f"{CELLS} thead th").first
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) != "none", "the focus is seen"


def test_everything_has_a_name_for_those_who_hear_the_page(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('table, [role=region], svg[role=img], input, nav')].filter(element => {
          const by = element.getAttribute('aria-labelledby');
          return !(element.getAttribute('aria-label') || (by && document.getElementById(by).textContent.trim()));
        }).map(element => element.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    assert page.locator(f"{CELLS}").get_attribute("aria-labelledby")
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    lost = page.evaluate(
        """() => [...document.querySelectorAll('[aria-describedby], [data-for], a[href^="#"]')].filter(element => {
          const id = element.getAttribute('aria-describedby') || element.dataset.for || element.hash.slice(1);
          return !document.getElementById(id);
        }).length"""
    )
    assert lost == 0
