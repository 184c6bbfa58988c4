"""The published page in a browser: it draws, sorts, links and fits, in light and dark, without a network."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from surm.experiments.plan import load_scale, load_scale_experiments
from surm.experiments.publish import report_plan
from surm.report.page import build
from surm.report.screenshot import take_picture

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

CONTRAST = """selector => {
  const parts = (color) => color.match(/[0-9.]+/g).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if ((parts(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll(selector)].map((element) => {
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
}"""


TEXTS = """figure => {
  const edges = (box) => [box.left, box.top, box.right, box.bottom];
  const texts = [...figure.querySelectorAll("text")];
  return [
    edges(figure.getBoundingClientRect()),
    texts.map((text) => [text.textContent, ...edges(text.getBoundingClientRect())]),
  ];
}"""


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    plans = [report_plan(experiment) for experiment in load_scale_experiments(load_scale("published"))]
    published = ROOT / "results" / "runs"
    build(plans, published, folder / "none", folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, page_path):
    """Open the page and watch it: any error or request is a failure."""
    problems, contexts = [], []

    def open_page(width=1200, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if request.url != page_path.as_uri() else None)
        page.goto(page_path.as_uri())
        return page

    yield open_page
    assert problems == []
    for context in contexts:
        context.close()


def test_the_page_is_small(page_path):
    figures = re.findall(r"<svg.*?</svg>", page_path.read_text(), flags=re.DOTALL)
    assert max(map(len, figures)) <= 300_000
    assert page_path.stat().st_size <= 75_000 * len(figures)


def test_every_figure_is_drawn(show):
    page = show()
    figures = page.locator(".plot svg")
    assert figures.count() >= 15
    for figure in figures.all():
        box = figure.bounding_box()
        assert box["width"] > 400
        assert box["height"] > 150
        assert figure.locator("path").count() > 5  # a forest plot before its runs has axes, band and lines alone


@pytest.mark.parametrize("width", [1200, 800, 390])
def test_texts_end_within_their_figure_and_stay_readable(show, width):
    page = show(width=width)
    for figure in page.locator(".plot svg").all():
        box, texts = figure.evaluate(TEXTS)
        assert len(texts) > 5
        for words, left, top, right, bottom in texts:
            assert box[0] - 1 <= left <= right <= box[2] + 1, words
            assert box[1] - 1 <= top <= bottom <= box[3] + 1, words
    sizes = page.eval_on_selector_all(
        ".plot svg > *", "all => all.map((one) => one.ownerSVGElement.getScreenCTM().a * 8)"
    )
    assert min(sizes) >= 8  # pixels of a font of 8 points


def test_a_click_or_a_key_sorts_a_column_by_its_numbers(show):
    page = show()
    table = page.locator("#section-laptop_digits table.sortable").first
    heading = table.locator("thead th").nth(1)
    button = heading.locator("button")

    def column():
        return [int(text.replace(",", "")) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]

    before = column()
    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(before) != before
    button.focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column() == sorted(before, reverse=True)
    table.locator("thead th").first.locator("button").click()
    assert heading.get_attribute("aria-sort") == "none"


def test_missing_numbers_stay_last_in_either_direction(show):
    page = show()
    table = page.locator("#section-small_table1_images table.sortable").first
    for _ in range(2):
        table.locator("thead th").nth(2).locator("button").click()
        cells = table.locator("tbody tr td:nth-child(3)").all_inner_texts()
        numbers = [bool(re.match(r"[0-9]", cell)) for cell in cells]
        assert numbers == sorted(numbers, reverse=True)
        assert 0 < sum(numbers) < len(numbers)


def test_every_link_leads_to_a_visible_place(show):
    page = show()
    links = page.eval_on_selector_all("a", "all => [...new Set(all.map((a) => a.getAttribute('href')))]")
    assert len(links) > 30
    for link in links:
        assert link.startswith("#")
        page.evaluate("link => { location.hash = link; }", link)
        page.wait_for_function(
            "id => document.getElementById(id)?.checkVisibility({contentVisibilityAuto: true})", arg=link[1:]
        )


def test_a_phone_needs_no_sideways_scrolling(show):
    page = show(width=390, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_either_scheme(show, scheme):
    page = show(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall("[0-9]+", background)[0])
    assert red < 60 if scheme == "dark" else red > 200
    selectors = "p, li, td, th, h1, h2, h3, a, small, summary, caption, button, .verdict, .plot text"
    contrasts = page.evaluate(CONTRAST, selectors)
    assert len(contrasts) > 500
    assert min(contrasts) >= 4.5


def test_figures_follow_a_change_of_the_scheme(show):
    page = show(color_scheme="light")
    marks = "#plot-laptop_digits-accuracy_over_parameters svg use"
    colours = "all => all.map((one) => getComputedStyle(one).stroke)"
    before = page.eval_on_selector_all(marks, colours)
    assert "rgb(27, 31, 36)" in before
    page.emulate_media(color_scheme="dark")
    assert "rgb(27, 31, 36)" not in page.eval_on_selector_all(marks, colours)


def test_committed_results_are_shown(show):
    page = show()
    for name in ("laptop_digits", "laptop_valence"):
        expected = pd.read_csv(ROOT / "results" / "tables" / f"{name}.csv")
        rows = page.locator(f"#section-{name} table.sortable").first.locator("tbody tr")
        shown = [row.split("\t") for row in rows.all_inner_texts()]
        assert [row[0] for row in shown] == expected["method"].tolist()
        assert [row[3].split()[0] for row in shown] == [f"{mean:.1f}" for mean in expected["mean"]]


def test_a_picture_can_be_taken(page_path, tmp_path):
    take_picture(page_path, tmp_path / "page.png")
    data = (tmp_path / "page.png").read_bytes()
    assert data[:4] == b"\x89PNG"
    assert int.from_bytes(data[16:20], "big") == 1200
    assert len(data) < 300_000
