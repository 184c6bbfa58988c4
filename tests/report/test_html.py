"""The HTML page: what it holds, where its links lead, and what it survives."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from surm.records.record import read_records
from surm.report import primary
from surm.report.page import build
from surm.report.plan import ComparisonPlan, GridPlan, StudyPlan
from surm.report.verdict import Claim, Verdict
from surm.report.view import ClaimRow, Outcome, sentences
from tests.report import made_up
from tests.report.grids import write_cell

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "results" / "papers" / "surm"
ACCURACIES = {"linear probe": 0.84, "LoRA r=1": 0.95, "circulant": 0.98}
EVIL = "</script><img src=x onerror=alert(1)> ![x](http://example.org/x.png) [y](javascript:alert(1))"


class Page(HTMLParser):
    """Ids, links, headings, tables as rows of (text, link), and the ids of the figures."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.tags, self.rows, self.headings = [], [], [], [], []
        self.text, self.figures, self._into = "", [], None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.rows = [[(text.strip(), link) for text, link in row] for row in self.rows]

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.figures += [attributes["id"]] if tag == "figure" else []
        self._into = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", None])
        if tag == "a" and self.rows and self.rows[-1]:
            self.rows[-1][-1][1] = attributes["href"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data):
        if self._into not in ("script", "style"):
            self.text += data
            if self.rows and self.rows[-1]:
                self.rows[-1][-1][0] += data

    def cells(self, first):
        """The cells of the row that begins with a text."""
        return next([text for text, _ in row] for row in self.rows if row[0][0] == first)


def build_page(tmp_path, plans, **options):
    build(plans, tmp_path / "published", tmp_path / "runs", tmp_path / "out", **{"label": "", "paper": PAPER} | options)
    return Page(tmp_path / "out" / "report.html")


@pytest.fixture
def two_sets(tmp_path):
    """Three published seeds, two of this machine: circulant is worse there than here."""
    made_up.write_experiment(tmp_path / "published", ACCURACIES | {"circulant": 0.90}, seeds=3, published=True)
    signatures = made_up.write_experiment(tmp_path / "runs", ACCURACIES, seeds=2)
    return ComparisonPlan("laptop", "ViT-S/14 on digits", signatures, ["image_gain_over_lora"])


def test_a_claim_stands_beside_both_numbers_and_verdicts(tmp_path, two_sets):
    page = build_page(tmp_path, [two_sets])
    (row,) = (row for row in page.rows if "(abstract, section 6)" in row[0][0])
    _, published, verdict, ours, _ = row
    assert "points, 3 seeds (power: " in published[0]
    assert verdict[0].startswith("✗ disagrees")
    assert "points, 2 seeds (power: " in ours[0]
    assert (published[1], ours[1]) == ("#records-published-laptop", "#records-run-laptop")
    assert page.text.index("Claims and verdicts") < page.text.index("Score over trainable parameters")


def test_numbers_are_those_of_the_records_and_lead_to_them(tmp_path, two_sets):
    page = build_page(tmp_path, [two_sets])
    records = read_records(tmp_path / "runs").values()
    scores = [record.score for record in records if record.asked["structure"]["name"] == "circulant"]
    header = next(row for row in page.rows if row[0][0].startswith("method") and len(row) > 5)
    column = [text for text, _ in header].index("mean (%)")
    text, link = next(row for row in page.rows if row[0][0] == "circulant" and len(row) > 5)[column]
    assert text.startswith(f"{np.mean(scores):.1f}")
    start = page.source.index(f'id="{link[1:]}"')
    block = page.source[start : page.source.index("</section>", start)]
    assert "<h4>circulant</h4>" in block
    assert re.findall(r"accuracy ([0-9.]+) %", block) == [f"{score:.2f}" for score in scores]


def test_every_link_leads_to_one_place(tmp_path, two_sets):
    page = build_page(tmp_path, [two_sets])
    assert len(set(page.ids)) == len(page.ids)
    assert page.links
    assert {link for link in page.links if link.removeprefix("#") not in page.ids or not link.startswith("#")} == set()


def test_the_page_is_whole_and_well_formed(tmp_path, two_sets):
    page = build_page(tmp_path, [two_sets])
    loading = [(tag, a) for tag, a in page.tags if tag in ("script", "img", "iframe") and "src" in a]
    loading += [(tag, a) for tag, a in page.tags if tag == "link" and not a["href"].startswith("data:")]
    assert loading == []
    assert ("html", {"lang": "en"}) in page.tags
    assert page.headings[0] == 1
    assert all(below - above <= 1 for above, below in zip(page.headings, page.headings[1:], strict=False))
    described = [a["aria-describedby"] for tag, a in page.tags if a.get("role") == "img"]
    assert described
    assert set(described) <= set(page.ids)


def test_the_same_records_give_the_same_bytes(tmp_path, two_sets):
    assert build_page(tmp_path, [two_sets]).source == build_page(tmp_path, [two_sets]).source


def test_a_section_without_runs_here_shows_what_is_published(tmp_path):
    signatures = made_up.write_experiment(tmp_path / "published", ACCURACIES, published=True)
    page = build_page(tmp_path, [ComparisonPlan("laptop", "ViT-S/14 on digits", signatures)])
    assert "Shown: published here" in page.text
    assert "What is missing" not in page.text
    assert page.cells("circulant")[1] == "27,648"


def test_nothing_run_says_so_with_the_command(tmp_path):
    asked = {"deadbeef0000": made_up.asked(made_up.STRUCTURES["circulant"])}
    asked["deadbeef0001"] = made_up.asked(made_up.STRUCTURES["circulant"], dataset="mnist5k")
    plan = GridPlan("table1_images", "Images", list(asked), ["image_gain_over_lora"], asked=asked)
    page = build_page(tmp_path, [plan], options="SCALE=paper")
    assert "make reproduce SCALE=paper ONLY=table1_images" in page.text
    assert "2 of 2 planned records are missing" in page.text
    assert "Methods: circulant. Tasks: digits; mnist5k." in page.text
    (row,) = (row for row in page.rows if "(abstract, section 6)" in row[0][0])
    assert row[2][0].startswith("○ no record")
    assert page.figures == []


def test_failures_and_damage_are_named_and_kill_nothing(tmp_path, two_sets):
    runs = tmp_path / "runs"
    request = made_up.asked(made_up.STRUCTURES["BitFit"])
    failed = made_up.write_run(runs, request, np.arange(9), np.ones(9, bool), status="failed", error="out of memory")
    broken, unreadable = two_sets.signatures[0], two_sets.signatures[2]
    (runs / broken / "record.json").write_text('{"signature": "')
    (runs / unreadable / "predictions.json").write_text("[1,")
    plan = ComparisonPlan("laptop", "ViT-S/14 on digits", [*two_sets.signatures, failed])
    page = build_page(tmp_path, [plan])
    assert re.search(rf"{broken}.record\.json is left out, it is not a whole record \(no JSON from line 1\)", page.text)
    assert re.search(rf"{unreadable}.predictions\.json is damaged", page.text)
    assert "BitFit, seed 0: failed, out of memory" in page.text
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"{broken}/record.json is left out" in markdown


def test_text_of_records_is_never_markup(tmp_path):
    signatures = made_up.write_experiment(tmp_path / "runs", ACCURACIES, seeds=1)
    request = made_up.asked({"name": f"peft_{EVIL}"})
    signatures.append(made_up.write_run(tmp_path / "runs", request, np.arange(9), np.ones(9, bool)))
    request = made_up.asked({"name": "bitfit"})
    failed = made_up.write_run(tmp_path / "runs", request, np.arange(9), np.ones(9, bool), status="failed", error=EVIL)
    page = build_page(tmp_path, [ComparisonPlan("e", "E", [*signatures, failed])])
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert all(link.startswith("#") for link in page.links)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "</SCRIPT>" in " ".join(svg_of(page, page.figures[0])[1])


def svg_of(page, name):
    """The root of a figure's SVG, and its texts."""
    figure = page.source[page.source.index(f'<figure id="{name}"') :]
    root = ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + len("</svg>")])
    return root, ["".join(text.itertext()).strip() for text in root.iter("text")]


def test_figures_of_a_comparison_are_drawn_and_described(tmp_path, two_sets):
    page = build_page(tmp_path, [two_sets])
    kinds = [name.removeprefix("plot-laptop-") for name in page.figures]
    assert kinds == ["accuracy_over_parameters", "learning_curves", "cost"]
    records = read_records(tmp_path / "runs").values()
    expected = np.mean([r.score for r in records if r.asked["structure"]["name"] == "circulant"])
    root, texts = svg_of(page, page.figures[0])
    assert {"linear probe", "LoRA r=1", "circulant", "27,648 each", "accuracy (%)"} <= set(texts)
    title, words = root.find("title"), root.find("desc")
    assert root.get("role") == "img"
    assert (root.get("aria-labelledby"), root.get("aria-describedby")) == (title.get("id"), words.get("id"))
    assert title.text == "Score over trainable parameters: ViT-S/14 on digits"
    assert re.search(rf"circulant {expected:.1f} ± [0-9.]+ %", words.text)


def test_a_figure_has_the_colours_and_the_font_of_the_page(tmp_path, two_sets):
    page = build_page(tmp_path, [two_sets])
    for name in page.figures:
        root, _ = svg_of(page, name)
        styles = " ".join(element.get("style", "") for element in root.iter())
        assert "var(--ink)" in styles
        assert not re.search(r"#000000|#ffffff|font-family|DejaVu", styles, re.IGNORECASE)


def test_what_is_no_evidence_says_so_in_every_figure(tmp_path, two_sets):
    page = build_page(tmp_path, [two_sets], label="smoke: not evidence", evidence=False)
    for name in page.figures:
        assert "smoke: not evidence" in svg_of(page, name)[1]


def test_low_data_curves_stand_over_the_fractions(tmp_path):
    planned = {}
    for fraction in (0.1, None):
        for name, accuracy in {"full fine-tuning": 0.9, "circulant": 0.8}.items():
            seeds = [accuracy, accuracy + 0.01]
            planned |= write_cell(tmp_path / "runs", name, seeds, fraction=fraction)
    page = build_page(tmp_path, [GridPlan("fig6", "Low data", list(planned), asked=planned)])
    root, texts = svg_of(page, "plot-fig6-scores")
    assert {"10", "100", "full fine-tuning on all data", "circulant"} <= set(texts)
    assert "digits, 10 %: full fine-tuning 90.5 ± 0.7 %" in root.find("desc").text


def test_a_cell_of_a_grid_leads_to_its_own_records(tmp_path):
    planned = {}
    for dataset, accuracy in {"digits": 0.9, "mnist5k": 0.8}.items():
        planned |= write_cell(tmp_path / "runs", "circulant", [accuracy, accuracy + 0.01], dataset)
    page = build_page(tmp_path, [GridPlan("t", "T", list(planned), asked=planned)])
    row = next(row for row in page.rows if row[0][0] == "circulant")
    assert row[2][0].startswith("90.5 ")
    assert row[3][0].startswith("80.5 ")
    for (_, link), dataset in zip(row[2:4], ("digits", "mnist5k"), strict=True):
        assert f'id="{link[1:]}" class="group">\n<h4>circulant on {dataset}</h4>' in page.source


@pytest.mark.parametrize(
    ("study", "kinds"),
    [
        ("ldr_fit", ["over_terms", "over_parameters"]),
        ("psd_fit", ["errors"]),
        ("pinwheel", ["loss_curves", "decision_regions"]),
    ],
)
def test_studies_have_figures_and_intervals(tmp_path, study, kinds):
    records = read_records(ROOT / "results" / "runs").values()
    parts = [r.signature for r in records if r.is_study and r.asked["study"]["name"] == study][:9]
    plan = StudyPlan("s", "A study", parts, study=study)
    build([plan], ROOT / "results" / "runs", tmp_path / "runs", tmp_path / "out", label="", paper=PAPER)
    page = Page(tmp_path / "out" / "report.html")
    assert page.figures == [f"plot-s-{kind}" for kind in kinds]
    assert "95 % interval" in page.text


def test_any_folder_of_records_can_be_read(tmp_path):
    """Runs that no plan asks for get a section of their own; those that chose a rate do not."""
    made_up.write_experiment(tmp_path / "runs", {"circulant": 0.98}, seeds=2, dataset="mnist5k")
    chosen = made_up.asked(made_up.STRUCTURES["circulant"], lr=0.5)
    chosen["dataset"]["evaluate_on"] = "selection"
    made_up.write_run(tmp_path / "runs", chosen, np.arange(9), np.ones(9, bool))
    page = build_page(tmp_path, [ComparisonPlan("laptop", "Laptop", ["deadbeef0000"])], further=True)
    assert "Further runs: builtin_vit on mnist5k, 3 epochs" in page.text
    assert page.text.count("Shown: this run") == 1
    assert page.cells("circulant")[1] == "27,648"


def test_several_folders_are_read_as_one(tmp_path):
    first = made_up.write_experiment(tmp_path / "a", {"circulant": 0.98}, seeds=1)
    second = made_up.write_experiment(tmp_path / "b", {"LoRA r=1": 0.95}, seeds=1)
    plan = ComparisonPlan("e", "E", [*first, *second])
    build([plan], tmp_path / "none", [tmp_path / "a", tmp_path / "b"], tmp_path / "out", label="", paper=PAPER)
    page = Page(tmp_path / "out" / "report.html")
    assert "2 finished records" in page.text
    assert "What is missing" not in page.text


# --- the order of the page, and what is counted -----------------------------------------------------------------------


def test_the_page_opens_with_the_primary_claims_and_keeps_what_has_not_run_for_the_end(tmp_path, two_sets):
    asked = {f"deadbeef000{seed}": made_up.asked(made_up.STRUCTURES["circulant"], seed=seed) for seed in range(2)}
    for one in asked.values():
        one["dataset"]["name"] = "cifar10"
    empty = GridPlan("later", "A table to come", list(asked), asked=asked)
    gain = GridPlan("claims_gain", "Gain over LoRA", list(asked), asked=asked)
    page = build_page(tmp_path, [empty, two_sets, gain])
    order = ["The primary claims", "Claims and verdicts", "ViT-S/14 on digits", "Gain over LoRA", "A table to come"]
    places = [page.source.index(f"<h2>{title}</h2>") for title in order]
    assert places == sorted(places)
    opening = page.source[page.source.index('id="primary"') : page.source.index('id="claims"')]
    assert opening.count("<li>") == 4
    assert "published here: " in re.sub(r"\s+", " ", opening)
    assert "plot-claims_gain-forest" in page.figures


def test_primary_claims_that_a_page_does_not_test_come_from_the_published_file(tmp_path, two_sets):
    answers = {"gain_over_lora": primary.Answer("agrees: larger", "+2.0 [+1.0, +3.0] points", "")}
    primary.write(tmp_path / primary.FILE, answers)
    assert primary.read(tmp_path / primary.FILE) == answers
    page = build_page(tmp_path, [two_sets])
    opening = re.sub(r"\s+", " ", page.text[page.text.index("The primary claims") :])
    assert "✓ agrees: larger +2.0 [+1.0, +3.0] points" in opening
    text = (tmp_path / "out" / "tables" / "primary_claims.md").read_text()
    assert "| agrees: larger; +2.0 [+1.0, +3.0] points | not among these experiments |" in text


def test_two_sets_of_the_same_records_are_one_column(tmp_path):
    made_up.write_experiment(tmp_path / "published", ACCURACIES, seeds=2, published=True)
    signatures = made_up.write_experiment(tmp_path / "runs", ACCURACIES, seeds=2)
    page = build_page(tmp_path, [ComparisonPlan("laptop", "Laptop", signatures, ["image_gain_over_lora"])])
    (row,) = (row for row in page.rows if "(abstract, section 6)" in row[0][0])
    assert len(row) == 3


def test_sentences_are_counted_and_what_follows_by_construction_is_not():
    def row(name, state, **fields):
        claim = Claim(name, "s", "p", "count", {}, "n", **fields)
        found = Verdict("undecided", "1", "", "not run") if state == "no record" else Verdict(state, "1")
        return ClaimRow(claim, None, [Outcome(found, "")])

    rows = [
        row("a", "agrees", reading_of="one"),
        row("b", "disagrees", reading_of="one"),
        row("c", "agrees", reading_of="two"),
        row("d", "undecided", reading_of="two"),
        row("e", "disagrees", by_construction="it cannot fail"),
        row("f", "disagrees", reading_of="three", registered="primary"),
        row("g", "agrees", reading_of="three"),
        row("h", "no record"),
    ]
    expected = {"depends on the reading": 1, "agrees": 1, "disagrees": 1, "no record": 1}
    assert sentences(rows) == expected
