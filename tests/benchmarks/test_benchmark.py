"""The benchmark of speed and memory: what it counts, how it compares, what it refuses."""

import json
import subprocess
import sys
from collections import Counter
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import calibrate, gpu_table, measure, table
from benchmarks.calls import count_calls
from benchmarks.command import options, run
from benchmarks.layers import STRUCTURES, layers, measure_layers
from benchmarks.measure import Candidate, peak_bytes
from benchmarks.result import TARGETS, Cell, Quartiles, Row, judge, worse_than_plain
from benchmarks.steps import METHODS, measure_steps
from surm.shared.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL = ["--width", "64", "--tokens", "32", "--rounds", "2"]


def cell_of(**rows: tuple[float, float]) -> Cell:
    """A measurement at the targets' size: name -> time and memory."""
    place = {"width": 768, "tokens": 2048, "dtype": "float32", "device": "cpu"}
    kinds = {"LoRA r=1": "peft", "C3A block 64": "peft", "plain dense: circulant": "plain"}
    found = [Row(n, kinds.get(n, "ours"), 1, Quartiles(t, t - 0.01, t + 0.01), m) for n, (t, m) in rows.items()]
    return Cell(place, "frozen layer", 15, 1, 0.02, 100, found)


def command(*arguments: str) -> list[Any]:
    return list(run(options().parse_args(arguments)))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_the_tensors_that_must_exist() -> None:
    known = layers()
    chosen = [known[name] for name in ("frozen layer", "full fine-tuning", "LoRA r=1")]
    cell = measure_layers(chosen, 768, 2048, torch.float32, CPU, rounds=1)
    assert cell.floor_bytes == 2 * 2048 * 768 * 4  # the output and the input's gradient
    assert cell.measured["full fine-tuning"].memory == 1 + (768 * 768 + 768) / (2 * 2048 * 768)
    assert cell.measured["LoRA r=1"].memory == pytest.approx(2.0, abs=0.01)


def test_memory_inside_an_operator_counts() -> None:
    @torch.library.custom_op("surm_test::detour", mutates_args=())
    def detour(x: Tensor) -> Tensor:
        return x.repeat(10).sum(dim=0, keepdim=True)

    x = torch.ones(1000)
    assert 40_000 <= peak_bytes(lambda: detour(x), CPU) < 41_000  # and what `sum` itself takes


def test_what_a_step_frees_of_before_is_no_gain() -> None:
    kept = {"old": torch.ones(10_000)}

    def step() -> None:
        kept.clear()
        torch.ones(100)

    assert peak_bytes(step, CPU) == 400


# --- time -------------------------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down from round to round; the second step takes three times as long as the first in each."""
    taken = Counter[str]()

    def clock(step: Any, repeats: int, device: torch.device) -> float:
        name = step()
        taken[name] += 1
        return float(taken[name] * (3 if name == "slow" else 1))

    monkeypatch.setattr(measure, "_clock", clock)
    monkeypatch.setattr(measure, "_repeats", lambda step, device: 1)
    monkeypatch.setattr(measure, "peak_bytes", lambda step, device: 8)
    steps = [Candidate("floor", "floor", step=lambda: "floor"), Candidate("slow", "ours", step=lambda: "slow")]
    cell = measure.measure({}, steps, "floor", rounds=5, device=CPU)
    assert taken == {"floor": 7, "slow": 7}  # two of them to warm up
    assert cell.measured["slow"].time == Quartiles(3, 3, 3)
    assert cell.floor_seconds == 5  # the median of 3 to 7


def test_no_step_always_follows_the_same_one() -> None:
    order: list[str] = []

    def candidate(name: str) -> Candidate:
        def step() -> None:
            order.append(name)
            torch.ones(1)

        return Candidate(name, "ours", step=step)

    names = [str(number) for number in range(6)]
    cell = measure.measure({}, map(candidate, names), "0", rounds=8, device=CPU)
    changes = [names for names in pairwise(order) if names[0] != names[1]]
    assert all(len({before for before, after in changes if after == name}) > 2 for name in names)
    assert cell.repeats > 1  # they are too short to be timed one by one


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_row_is_measured() -> None:
    known = layers()
    cell = measure_layers(known.values(), 64, 32, torch.float32, CPU, rounds=2)
    assert list(cell.measured) == list(known)
    assert cell.measured["frozen layer"].time == Quartiles(1, 1, 1)
    for row in cell.rows:
        assert row.time is not None
        assert row.memory is not None
        assert 0 < row.time.low <= row.time.median <= row.time.high
        assert row.memory >= 1


def test_trained_parameters_are_those_of_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    chosen = [layer for layer in layers().values() if layer.kind in ("floor", "full", "peft", "ours")]
    cell = measure_layers(chosen, 768, 2, torch.float32, CPU, rounds=1)
    assert {row.name: row.trained for row in cell.rows if row.kind in ("full", "peft")} == {
        "full fine-tuning": 768 * 768 + 768,
        "LoRA r=1": 2 * 768,
        "LoRA r=8": 16 * 768,
        "OFT block 32": 24 * 32 * 31 // 2,
        "VeRA r=256": 768 + 256,
        "C3A one block": 768,
        "C3A block 64": 12 * 12 * 64,
        "LoKr full factors": 24 * 24 + 32 * 32,
        "FourierFT n=1000": 1000,
    }
    ours = {row.name: row.trained for row in cell.rows if row.kind == "ours"}
    assert ours.keys() == STRUCTURES.keys()
    assert (
        ours.items() >= {"circulant": 1536, "one-factor Toeplitz": 1535, "Kronecker": 1536, "ldr 4 terms": 6144}.items()
    )


@pytest.mark.slow
def test_rows_of_a_large_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.layers.LARGE", 100)
    cell = measure_layers(layers().values(), 64, 2, torch.float32, CPU, rounds=4)
    assert [row.name for row in cell.rows] == ["frozen layer", "LoRA r=1", "LoRA r=8", *STRUCTURES]
    assert cell.rounds == 3


def test_half_precision_is_a_cell_like_the_others() -> None:
    chosen = [layers()[name] for name in ("frozen layer", "LoRA r=1", "circulant")]
    cell = measure_layers(chosen, 64, 32, torch.bfloat16, CPU, rounds=1)
    assert len(cell.measured) == 3
    assert 2 * 64 * 32 * 2 <= cell.floor_bytes < 2 * 64 * 32 * 2 + 64 * 64 * 2 * 3  # and the weight in another order


def test_what_a_method_cannot_do_is_a_row_with_the_reason() -> None:
    cell = measure_layers(
        [layers()[name] for name in ("frozen layer", "C3A block 64")], 48, 4, torch.float32, CPU, rounds=1
    )
    row = cell.rows[1]
    assert (row.time, row.memory) == (None, None)
    assert "block" in row.reason
    assert any(row.reason in note for note in table.notes(cell))


def test_whole_steps_are_relative_to_lora() -> None:
    cell = measure_steps("tiny_bert", 4, CPU, rounds=1, only=["circulant"])
    assert list(cell.measured) == ["LoRA r=1", "circulant"]
    assert cell.measured["LoRA r=1"].time == Quartiles(1, 1, 1)
    assert {row.trained for row in cell.rows} == {2 * 3 * 2 * 32}  # blocks, projections, two vectors of the width


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_vit", "tiny_bert"])
def test_every_structure_takes_whole_steps(model: str) -> None:
    cell = measure_steps(model, 8, CPU, rounds=2, backend="fft")
    assert list(cell.measured) == list(METHODS) == ["LoRA r=1", *TARGETS]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_targets_are_met_or_missed_by_so_much() -> None:
    cell = cell_of(
        **{"LoRA r=1": (1.10, 2.0), "circulant": (1.11, 1.3), "Kronecker": (1.15, 1.485), "low rank 1": (9, 9)}
    )
    lora, circulant, kronecker, low_rank = cell.rows
    assert judge(cell, lora) == judge(cell, low_rank) == ""
    assert judge(cell, circulant) == "time missed by 0.9 %"  # below 1.12, but above LoRA
    assert judge(cell, kronecker) == "memory missed by 10.0 %"
    assert judge(cell_of(circulant=(1.12, 1.35)), circulant) == "met"
    cell.place["tokens"] = 64
    assert judge(cell, kronecker) == ""


def test_rivals() -> None:
    cell = cell_of(**{"C3A block 64": (2.4, 5), "circulant": (1.2, 1.3), "Kronecker": (1.25, 1.3)})
    circulant, kronecker = table.notes(cell)
    assert circulant.startswith("circulant: 2.00 times as fast")
    assert circulant.endswith("met.")
    assert kronecker.endswith("missed.")


def test_worse_than_plain_by_more_than_noise() -> None:
    cell = cell_of(**{"plain dense: circulant": (2.5, 2), "circulant": (2.515, 1), "Kronecker": (2.53, 1)})
    assert [(worse["row"], worse["plain"]) for worse in worse_than_plain([cell])] == [
        ("Kronecker", "plain dense: circulant")
    ]


# --- the command ------------------------------------------------------------------------------------------------------


def test_numbers_are_stored_printed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    added = ["--peft", "peft:HRAConfig", "--kwargs", '{"r": 2}']
    command(*SMALL, "--only", "circulant", *added)
    path = tmp_path / "outputs/benchmark/quick.json"
    stored = json.loads(path.read_text())
    assert stored["where"]["machine"]["threads"] == torch.get_num_threads()
    assert set(stored["where"]["load"]) == {"before", "after"}
    (cell,) = (Cell.from_json(cell) for cell in stored["cells"])
    assert [row.name for row in cell.rows] == ["frozen layer", "circulant", "HRA r=2"]
    assert cell.to_json() == stored["cells"][0]
    picture = path.with_suffix(".png")
    picture.unlink()
    printed, *_ = command("--draw", str(path))
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = StringIO()
    Console(file=written).print(printed)
    lines = written.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[2:5]] == ["frozen layer", "circulant", "PEFT HRA r=2"]
    assert f"{cell.measured['circulant'].memory:.2f}" in lines[3].split()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "results/benchmark").glob("*.json")), ids=lambda path: path.stem)
def test_published_tables_are_those_of_the_published_numbers(path: Path) -> None:
    stored = json.loads(path.read_text())
    cells = [Cell.from_json(cell) for cell in stored["cells"]]
    page = gpu_table.page(cells, stored) if "gpu" in stored else table.markdown_tables(cells)
    assert path.with_suffix(".md").read_text() == page


def test_the_readmes_costs_are_published_ones() -> None:
    [cell] = json.loads((REPOSITORY / "results/benchmark/quick.json").read_text())["cells"]
    measured = {row["name"]: row for row in cell["rows"]}
    lines = (REPOSITORY / "README.md").read_text().split("**What it costs**")[1].split("\n\n")[1].splitlines()
    names, _, times, memories = ([value.strip() for value in line.strip("|").split("|")][1:] for line in lines)
    full = {"C3A": "C3A one block", "LoKr": "LoKr full factors", "ldr, 1 term": "ldr 1 term"}
    rows = [measured[full.get(name, name)] for name in names]
    assert times == [f"{row['time']['median']:.2f}" for row in rows]
    assert memories == [f"{row['memory']:.2f}" for row in rows]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peft", "peft:Lora"], "give module:ConfigClass"),
        (["--peft", "no_such_module:LoraConfig"], "give module:ConfigClass"),
        (["--peft", "peft:LoraModel"], "no configuration class"),
        (["--peft", "peft:LoraConfig", "--kwargs", "{r: 4}"], "no JSON"),
        (["--peft", "peft:LoraConfig", "--kwargs", "[4]"], "give an object"),
        (["--peft", "peft:LoraConfig", "--kwargs", '{"rank": 4}'], "LoraConfig refuses it"),
        (["--kwargs", "{}"], "belongs to a --peft"),
        (["--only", "circulent"], "did you mean circulant?"),
        (["--steps", "--only", "LoRA r=8"], "did you mean LoRA r=1?"),
        (["--steps", "--peft", "peft:LoraConfig"], "leave --steps out"),
        (["--device", "tpu"], "this machine offers cpu"),
        (["--draw", "nothing.json"], "no result of this benchmark"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        run(options().parse_args(arguments))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_mistake_ends_the_script_before_anything_is_measured(tmp_path: Path) -> None:
    script = [sys.executable, str(REPOSITORY / "scripts/benchmark.py"), "--peft", "peft:Lora"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --peft peft:Lora")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_calls_of_the_frozen_layer_are_its_two_products() -> None:
    """x W^T + b and g W; an update adds to them."""
    known = layers()
    chosen = [known["frozen layer"], known["circulant"]]
    frozen, updated = count_calls(chosen, 16, 8, torch.bfloat16, CPU)
    assert (frozen.name, frozen.computing, frozen.kernels) == ("frozen layer", 2, None)
    assert updated.computing > frozen.computing
    assert updated.calls > frozen.calls


def test_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SHORTEST", 0.001)
    monkeypatch.setattr(calibrate, "SIZES", (8, 16))
    found = calibrate.calibrate(CPU)
    assert set(found) == {"float32", "bfloat16"}
    for costs in found.values():
        assert [(entry["rows"], entry["size"]) for entry in costs["product"]] == [
            (rows, size) for rows in (1, 64, 2048) for size in (8, 16)
        ]
        assert all(entry["seconds"] > 0 for name in ("product", "fft", "add") for entry in costs[name])
        assert costs["call"] > 0
