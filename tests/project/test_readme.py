"""The Python of the README and of docs/structures.md runs as it stands and does what its comments say."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
STRUCTURES = (REPOSITORY / "docs/structures.md").read_text(encoding="utf-8")
RESULTS = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
[THREE_LINES] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", STRUCTURES, flags=re.DOTALL)


def test_three_lines_adapt_a_users_own_model() -> None:
    import timm

    names: dict[str, object] = {"model": timm.create_model("vit_base_patch16_224", num_classes=10)}
    exec(THREE_LINES, names)
    trained = {name: p.numel() for name, p in names["model"].named_parameters() if p.requires_grad}
    assert sum(number for name, number in trained.items() if "surm" in name) == 55_296
    assert sum(number for name, number in trained.items() if "head" in name) == 768 * 10 + 10


def test_the_plug_in_example_trains_what_it_says_and_merges(tmp_path: Path) -> None:
    check = "\nassert type(merged) is type(fresh)\nassert not any('surm' in n for n, _ in merged.named_modules())"
    done = subprocess.run([sys.executable, "-c", BLOCKS[0] + check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head = 768 * 10 + 10
    assert f"trainable params: {55_296 + head:,}" in done.stdout
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").exists()


def test_the_adapter_example_trains_what_it_says() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    trained = {name: p.numel() for name, p in names["model"].named_parameters() if p.requires_grad}
    assert sum(trained.values()) == 55_296
    assert all("surm_adapter" in name for name in trained)


def test_the_structure_example_gives_the_nearest_toeplitz_matrix() -> None:
    import numpy as np

    names: dict[str, object] = {}
    exec(BLOCKS[2], names)
    matrix, fitted = names["W"].numpy(), names["fit"].dense().detach().numpy()
    for offset in (-40, -1, 0, 7):
        assert np.diagonal(fitted, offset) == pytest.approx(np.diagonal(matrix, offset).mean(), abs=1e-5)
    assert names["y"].shape == (8, 64)


def test_the_allocator_example_leaves_two_components_a_layer_on_average() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[3], names)
    gates = [p for name, p in names["model"].named_parameters() if name.endswith(".c")]
    assert sum(map(len, gates)) == 4


def test_the_example_of_other_systems_trains_what_it_says() -> None:
    import torch

    names: dict[str, object] = {}
    with torch.device("meta"):
        exec(BLOCKS[4], names)
        assert names["model"].get_nb_trainable_parameters()[0] == 3_440
        own = names["get_peft_model"](names["model"].unload(), names["hadamard"])
    assert own.get_nb_trainable_parameters()[0] == 36_864


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))])
def test_every_file_it_names_exists(page: str) -> None:
    path = REPOSITORY / page
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / name).exists(), name


def test_the_table_of_results_says_what_the_published_tables_say() -> None:
    tables = [pd.read_csv(REPOSITORY / f"results/tables/laptop_{task}.csv") for task in ("digits", "valence")]
    methods = tables[0]["method"]
    assert list(methods) == list(tables[1]["method"])
    for number, method in enumerate(methods):
        cells = re.search(rf"^\| {re.escape(method)} \|(.*)\|$", RESULTS, flags=re.MULTILINE)
        assert cells, method
        expected = []
        for row in (table.iloc[number] for table in tables):
            expected += [f"{row['mean']:.1f}", _difference(row)]
        assert [cell.strip() for cell in cells[1].split("|")] == expected


def _difference(row: "pd.Series[float]") -> str:
    return "" if pd.isna(row["difference"]) else f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
