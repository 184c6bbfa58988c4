"""The committed analyses give the committed table; its numbers are means of the analyses' rows."""

import json
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from surm.report.studies import weights as analysis
from surm.shared.paths import PAPER, PUBLISHED

RESULTS = PUBLISHED.parent
FIGURE_11 = yaml.safe_load((PAPER / "fig11.yaml").read_text())


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    (folder / "analysis").symlink_to(RESULTS / "analysis")
    analysis.write(folder, PAPER)
    return folder


@pytest.mark.parametrize("name", ["weight_analysis.md", "weight_analysis.csv"])
def test_the_table_is_rebuilt_byte_for_byte(rebuilt: Path, name: str) -> None:
    assert (rebuilt / "tables" / name).read_bytes() == (RESULTS / "tables" / name).read_bytes()


def test_the_figure_is_drawn(rebuilt: Path) -> None:
    assert (rebuilt / analysis.FIGURE).read_bytes()[:4] == b"\x89PNG"


def test_methods_are_told_apart_without_colour(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(analysis, "save", lambda figure, path: drawn.append(figure))
    analysis.figure(analysis.read(RESULTS / "analysis"), FIGURE_11, tmp_path)
    for axes in drawn[0].axes:
        lines = [line for line in axes.lines if line.get_marker() != "None"]
        looks = [(line.get_marker(), line.get_markerfacecolor() == "white") for line in lines]
        assert len(set(looks)) == len(looks)
    assert [len(axes.lines) for axes in drawn[0].axes[4:6]] == [4, 4]  # the paper's


def test_every_analysis_is_of_a_published_run_with_three_seeds_a_method() -> None:
    found = analysis.read(RESULTS / "analysis")
    seeds: dict[str, set[int]] = {}
    for one in found:
        record = json.loads((PUBLISHED / f"{one['signature']}.json").read_text())
        assert record["asked"] == one["asked"]
        seeds.setdefault(one["asked"]["structure"]["name"], set()).add(one["asked"]["seed"])
    assert seeds.keys() == {"lora", "circulant", "toeplitz", "kronecker", "ldr", "full"}
    assert all(found == {0, 1, 2} for found in seeds.values())


def test_a_row_is_the_mean_over_layers_and_seeds(rebuilt: Path) -> None:
    found = [one for one in analysis.read(RESULTS / "analysis") if one["asked"]["structure"]["name"] == "kronecker"]
    values = [row for one in found for row in one["rows"] if row["part"] == "v"]
    table = pd.read_csv(rebuilt / "tables" / "weight_analysis.csv")
    here = table[table["task"] == "builtin_bert on valence"]
    row = here[(here["method"] == "Kronecker") & (here["matrix"] == "value")].iloc[0]
    lora = here[(here["method"] == "LoRA r=1") & (here["matrix"] == "value")].iloc[0]
    assert row["seeds"] == 3
    assert row["one_minus_cosine"] == pytest.approx(fmean(value["one_minus_cosine"] for value in values), rel=1e-5)
    assert row["highest"] == max(value["one_minus_cosine"] for value in values)
    assert row["ratio"] == pytest.approx(row["one_minus_cosine"] / lora["one_minus_cosine"], rel=1e-4)
    assert row["lowest_rank"] == min(value["rank"] for value in values) == row["largest_rank"] == 256


def test_the_notes_say_what_the_ratio_shows(rebuilt: Path) -> None:
    """The first step of Adam in closed form, and how far full fine-tuning goes, from the table's own numbers."""
    text = (rebuilt / "tables" / "weight_analysis.md").read_text()
    first = 0.003 * 384 / (0.009 * (384 / 3) ** 0.5)  # rates of circulant and LoRA r=1 on MiniLM, width 384
    assert f"about {first:.0f} times as far as one of LoRA r=1" in text
    frame = pd.read_csv(rebuilt / "tables" / "weight_analysis.csv").set_index(["method", "matrix"])["one_minus_cosine"]
    ours = frame[~frame.index.duplicated()]  # the paper's rows come last
    times = [ours["LoRA r=1", part] / ours["full fine-tuning", part] for part in ("query", "key", "value")]
    assert f"full fine-tuning goes {min(times):.0f} to {max(times):.0f} times less far than LoRA r=1" in text


def test_the_papers_rows_come_last_with_its_ratio(rebuilt: Path) -> None:
    table = pd.read_csv(rebuilt / "tables" / "weight_analysis.csv")
    assert table["task"].iloc[-8:].unique() == ["paper: BERT-base on MRPC"]
    values = FIGURE_11["values"]["q"]
    row = table[(table["task"] == "paper: BERT-base on MRPC") & (table["method"] == "circulant")].iloc[0]
    assert row["ratio"] == pytest.approx(fmean(values["circulant"]) / fmean(values["lora"]), rel=1e-4)
    assert all(len(layers) == 12 for part in FIGURE_11["values"].values() for layers in part.values())
