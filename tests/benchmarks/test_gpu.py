"""The benchmark on a GPU: its goals, its command, and a rehearsal of both without a GPU."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import goals, gpu
from benchmarks.gpu import options, run
from benchmarks.result import Cell, Kernels, Quartiles, Row
from surm.shared.errors import ConfigError


def cell_of(mode: str, place: dict[str, object] | None = None, **rows: tuple[float, float, int]) -> Cell:
    """A measurement: name -> time and memory relative to LoRA's, and the number of kernels."""
    at = place or {"width": 768, "tokens": 2048, "dtype": "bfloat16"}
    found = [
        Row(name, "ours", 1, Quartiles(t, t - 0.01, t + 0.01), m, kernels=Kernels(1e-4, k))
        for name, (t, m, k) in rows.items()
    ]
    return Cell({**at, "device": "cuda", "mode": mode}, "LoRA r=1", 9, 1, 1e-3, 100, found)


ROWS = {
    "frozen layer": (0.4, 0.5, 2),
    "LoRA r=1": (1.0, 1.0, 17),
    "C3A one block": (2.0, 2.0, 39),
    "LoKr full factors": (0.9, 2.0, 39),
}


def test_goals_are_met_or_missed_with_the_worst_place() -> None:
    ours = {"circulant": (0.95, 0.9, 12), "Kronecker": (1.10, 1.0, 13), "ldr 1 term": (1.4, 1.2, 40)}
    found = {(f.goal, f.rows): f for f in goals.findings([cell_of("eager", **ROWS, **ours)])}
    single, double = (found["a layer, eager, to LoRA r=1", rows] for rows in ("single", "pair, ldr"))
    assert (single.reached, single.measured, single.worst) == (1, 2, 1.10)
    assert single.where.startswith("Kronecker, 768 x 768")
    assert single.verdict == "missed in 1 of 2 (46 not measured)"
    assert (double.limit, double.verdict) == (1.5, "met in 1 (31 not measured)")
    launches = found["kernels beyond the frozen layer's", "single"]
    assert (launches.worst, launches.reached) == (11, 1)
    assert found["kernels beyond the frozen layer's", "pair, ldr"].worst == 38
    assert found["peak memory of a layer, to LoRA r=1", "single"].verdict.startswith("met in 2")
    rivals = {name.removeprefix("a layer, eager, to "): f for (name, rows), f in found.items() if rows == "single"}
    assert rivals["C3A one block"].verdict.startswith("met in 2")
    assert (rivals["LoKr full factors"].worst, rivals["LoKr full factors"].reached) == (pytest.approx(1.10 / 0.9), 0)
    assert rivals["OFT block 32"].verdict == "not measured"  # whatever the others were
    pairs = [(name, f.worst) for (name, rows), f in found.items() if rows == "pair, ldr" and "block" in name]
    assert pairs == [("a layer, eager, to C3A one block", 0.7), ("a layer, graph replayed, to C3A one block", None)]
    assert found["a whole step, eager, to LoRA r=1", "single"].verdict == "not measured"


def test_the_largest_layer_is_compared_with_the_frozen_one() -> None:
    place = {"width": 4096, "tokens": 16_384, "dtype": "bfloat16"}
    cells = [cell_of("graph", place, **ROWS, circulant=(0.6, 1.0, 5))]
    [finding] = [f for f in goals.findings(cells) if f.goal.startswith("4096") and f.rows == "single"]
    assert finding.worst == pytest.approx(0.6 / 0.4)
    assert (finding.limit, finding.reached) == (1.6, 1)


def test_goals_of_whole_runs() -> None:
    train = [
        {"run": "circulant, 564 steps", "precision": precision, "ratio": ratio, "whole": whole}
        for precision, ratio, whole in (("no", 1.10, 25.0), ("bf16", 1.20, 15.0))
    ]
    found = goals.findings([], {"train": train, "four": {"times_the_runs_an_hour": 2.0}})
    step, whole, four = (f for f in found if f.goal.startswith(goals.RUNS))
    assert (step.worst, step.where, step.verdict) == (1.20, "circulant, 564 steps, precision bf16", "missed in 1 of 2")
    assert (whole.worst, whole.limit, whole.verdict) == (25.0, 20.0, "missed in 1 of 2")
    assert (four.worst, four.limit, four.verdict) == (0.5, 0.4, "missed in 1 of 1")
    assert [f.verdict for f in goals.findings([]) if f.goal.startswith(goals.RUNS)] == ["not measured"] * 3


def test_every_goal_has_a_cell_before_the_rest_follows() -> None:
    asked = options().parse_args([])
    units = [*gpu._layers(asked, torch.device("cuda"), 0.0), *gpu._steps(asked, torch.device("cuda"), 0.0)]
    titles = [unit.title for _, unit in sorted(units, key=lambda item: item[0])]
    first = titles[: titles.index("384 x 384, 2,048 tokens, bfloat16, cuda, eager")]
    assert "4096 x 4096, 16,384 tokens, bfloat16, cuda, graph" in first
    for words in ("768 x 768, 2,048 tokens, float32, cuda, ", "builtin_vit, 32 examples a step, cuda, bf16, "):
        assert words + "eager" in first
        assert words + "compiled" in first
    assert len(titles) == len(set(titles)) == 16 * 3 + 6 * 2


def test_cells_with_kernels_are_stored_and_read() -> None:
    cell = cell_of("eager", **ROWS)
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_a_rehearsal_leaves_numbers_a_table_and_a_picture_and_is_merged(tmp_path: Path) -> None:
    first, merged = tmp_path / "first.json", tmp_path / "all.json"
    asked = ["--tiny", "--part", "layers", "--mode", "eager", "graph", "--output", str(first)]
    printed = list(run(options().parse_args(asked)))
    stored = json.loads(first.read_text())
    assert [cell["place"]["mode"] for cell in stored["cells"]] == ["eager"]
    if not torch.cuda.is_available():
        assert stored["missing"] == [["32 x 32, 64 tokens, float32, cpu, graph", "a graph needs CUDA"]]
    assert "not measured, a graph needs CUDA" in printed[-2]
    list(run(options().parse_args(["--merge", str(first), str(first), "--output", str(merged)])))
    assert json.loads(merged.read_text())["cells"] == stored["cells"]
    assert merged.with_suffix(".md").read_text() == first.with_suffix(".md").read_text()
    assert merged.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_any_of_several_results_lacks_is_said_unless_another_has_it(tmp_path: Path) -> None:
    late = "no time was left"
    first = {"cells": [], "four": {"times_the_runs_an_hour": 3.0}, "missing": [["tests/gpu", late], ["a cell", late]]}
    tests = {"passed": 2, "failed": 0, "skipped": 0}
    second = {"cells": [], "tests": tests, "missing": [["four runs at once", late], ["scripts/train.py, no", late]]}
    for name, stored in (("first", first), ("second", second)):
        (tmp_path / f"{name}.json").write_text(json.dumps(stored))
    output = tmp_path / "all.json"
    paths = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    list(run(options().parse_args(["--merge", *paths, "--output", str(output)])))
    assert json.loads(output.read_text())["missing"] == [["a cell", late], ["scripts/train.py, no", late]]


@pytest.mark.slow
def test_failed_tests_are_named_in_the_result_and_printed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\ndef test_good(): pass\n@pytest.mark.parametrize('k', [5])\ndef test_bad(k): assert k < 3\n"
    )
    monkeypatch.setattr(gpu, "TESTS", {"tests": [str(file)], "kernel_tests": [str(file), "-k", "good"]})
    output = tmp_path / "gpu.json"
    printed = list(run(options().parse_args(["--tiny", "--part", "tests", "--output", str(output)])))
    stored = json.loads(output.read_text())
    assert stored["tests"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert stored["kernel_tests"] == {"passed": 1, "failed": 0, "skipped": 0}
    [[name, reason]] = stored["failed_tests"]
    assert name.endswith("test_some::test_bad[5]")
    assert "assert 5 < 3" in reason
    assert printed[-1] == f"failed: {name}\n{reason}"
    assert f"* failed: {name}" in output.with_suffix(".md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no GPU that CUDA sees"),
        (["--merge", "nothing.json"], "no result of this benchmark"),
        (["--tiny", "--only", "circulent"], "did you mean circulant?"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        run(options().parse_args([*arguments, "--output", str(tmp_path / "gpu.json")]))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
