"""A checkpoint is checked wholly before anything is taken from it."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from surm.methods.base import Method
from surm.shared.errors import Interrupted, RecordError
from surm.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from surm.training.run import execute
from tests.tools.runs import configure, quiet, stop_after

STEPS, STEP = 9, 4
HISTORY = [
    {"step": 1, "epoch": 0.5, "loss": 1.0, "lr": 0.1},
    {"step": 4, "epoch": 2.0, "evaluation": {"accuracy": 0.5, "loss": 1.0}},
]


class Plain(Method):
    """All parameters of a small model; one never has a gradient."""

    name = "plain"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.ModuleDict({"layer": nn.Linear(3, 2), "unused": nn.Linear(1, 1, bias=False)})
        self._trained = frozenset(name for name, _ in self.module.named_parameters())


def make() -> tuple[Plain, torch.optim.Optimizer]:
    method = Plain()
    return method, torch.optim.AdamW(method.module.parameters(), lr=0.1)


def trained() -> tuple[Plain, torch.optim.Optimizer]:
    method, optimizer = make()
    for _ in range(STEP):
        method.module["layer"](torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return method, optimizer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, *trained(), Progress(step=STEP, history=deepcopy(HISTORY), resumed_from_steps=[2]))
    return path


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors, progress)
    save_file(tensors, path, {"progress": json.dumps(progress)})


def state(method: Plain, optimizer: torch.optim.Optimizer) -> list[Any]:
    return [method.module.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state()]


WEIGHT = "layer.weight"
BAD_PROGRESS = {
    "step": [-1, 0, STEPS, 10**6, 3.0, "4", None, True, [4], 10**400],
    "history": [
        None, {}, "rows", 3, [1], [None], [[]], [{}], [{"step": 1}], [{"step": "1", "epoch": 0.5, "loss": 1.0}],
        [{"step": 5, "epoch": 0.5, "loss": 1.0}], [{"step": 0, "epoch": 0.0, "loss": 1.0}],
        [{"step": 3, "epoch": 1, "loss": 1.0}, {"step": 2, "epoch": 1, "loss": 1.0}],
        [{"step": 1, "epoch": "x", "loss": 1.0}], [{"step": 1, "epoch": 0.5, "loss": None}],
        [{"step": 1, "epoch": 0.5, "evaluation": None}], [{"step": 1, "epoch": 0.5, "evaluation": {}}],
        [{"step": 1, "epoch": 0.5, "evaluation": {"accuracy": "high"}}], [{"step": 1, "epoch": 0.5, "loss": 1e999}],
    ],
    "resumed_from_steps": [None, 3, "2", [5], [0], [-1], ["2"], [3, 2], [2.5], {}],
    "seconds": [None, "long", -1.0, float("nan"), float("inf"), True, [1.0]],
    "scaler": [3, "on", [], {}, {"scale": "x"}, {"scale": None}],
    "stateless": [None, 3, [], ["layer.bias"], ["unused.weight", "layer.bias"], {}, [["unused.weight"]]],
}  # fmt: skip
WRONG_LIKE = {
    "of one number": lambda t: t.flatten()[:1].clone(),
    "that broadcasts": lambda t: t.new_ones(1, *t.shape[1:]) if t.ndim else t.new_ones(1),
    "of no dimension": lambda t: t.new_ones(()) if t.ndim else t.new_ones(1, 1),
    "transposed": lambda t: t.T.contiguous() if t.ndim > 1 else t.new_ones(3, 3),
    "of a further dimension": lambda t: t[None].clone(),
    "empty": lambda t: t.new_ones(0),
    "double": lambda t: t.double(),
    "half": lambda t: t.half(),
    "whole": lambda t: t.long(),
    "NaN": lambda t: t.new_full(t.shape, float("nan")),
    "infinite": lambda t: t.new_full(t.shape, float("inf")),
}
TENSORS = [f"parameter/{WEIGHT}", *(f"optimizer/{field}/{WEIGHT}" for field in ("step", "exp_avg", "exp_avg_sq"))]


def put(key: str, value: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, progress: progress.__setitem__(key, value)


def tensor(key: str, value: Tensor) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, progress: tensors.__setitem__(key, value)


def replace(key: str, of: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, progress: tensors.__setitem__(key, of(tensors[key]))


def drop(pattern: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        for key in [key for key in tensors if re.search(pattern, key)]:
            del tensors[key]

    return change


CHANGES = {
    **{f"{key}={value!r:.60}": put(key, value) for key, values in BAD_PROGRESS.items() for value in values},
    **{f"{key} {kind}": replace(key, of) for key in TENSORS for kind, of in WRONG_LIKE.items()},
    **{
        f"without {pattern}": drop(pattern)
        for pattern in (
            "^optimizer/", "^parameter/", "^random", f"^optimizer/.*{WEIGHT}", f"optimizer/step/{WEIGHT}", "exp_avg/",
            "exp_avg_sq/", f"parameter/{WEIGHT}", "parameter/unused", "bias", ".",
        )
    },
    "another parameter": tensor("parameter/other", torch.ones(1)),
    "another parameter's state": tensor("optimizer/exp_avg/other", torch.ones(1)),
    "a state of another optimiser": tensor(f"optimizer/momentum/{WEIGHT}", torch.ones(2, 3)),
    "a key of nothing": tensor("other", torch.ones(1)),
    "an optimiser's key without a name": tensor("optimizer/step", torch.ones(())),
    "a method's state": tensor("method/ipt/layer.weight", torch.ones(2, 3)),
    "a method's state without a name": tensor("method/x", torch.ones(1)),
    "more steps of the optimiser": tensor(f"optimizer/step/{WEIGHT}", torch.tensor(5.0)),
    "half a step of the optimiser": tensor(f"optimizer/step/{WEIGHT}", torch.tensor(2.5)),
    "no step of the optimiser": tensor(f"optimizer/step/{WEIGHT}", torch.tensor(0.0)),
    "negative squares": tensor(f"optimizer/exp_avg_sq/{WEIGHT}", -torch.ones(2, 3)),
    "short random numbers": tensor("random.cpu", torch.zeros(3, dtype=torch.uint8)),
    "random numbers of another type": tensor("random.cpu", torch.zeros(5056)),
    "random numbers of zeros": tensor("random.cpu", torch.zeros(5056, dtype=torch.uint8)),
    "a further key of progress": put("other", 1),
}  # fmt: skip


@pytest.mark.sample(6)
@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_before_anything_is_changed(path: Path, change: str) -> None:
    rewrite(path, CHANGES[change])
    method, optimizer = make()
    before, content = deepcopy(state(method, optimizer)), path.read_bytes()
    with pytest.raises(RecordError) as caught:
        load_checkpoint(path, method, optimizer, STEPS)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "delete it to start" in message
    torch.testing.assert_close(state(method, optimizer), before, rtol=0, atol=0)
    assert path.read_bytes() == content


UNREADABLE = ["", "[", "3", "null", "[]", '{"stop": 3}', "[" * 100_000, '{"step": ' + "9" * 5000 + "}"]


@pytest.mark.sample(6)
@pytest.mark.parametrize("metadata", [None, {}, *({"progress": text} for text in UNREADABLE)], ids=range(10))
def test_progress_that_cannot_be_read(path: Path, metadata: Any) -> None:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)
    with pytest.raises(RecordError, match="delete it to start"):
        load_checkpoint(path, *make(), STEPS)


def test_an_unchanged_one_is_taken_back_whole(path: Path) -> None:
    expected = state(*trained())
    method, optimizer = make()
    torch.rand(5)
    progress = load_checkpoint(path, method, optimizer, STEPS)
    torch.testing.assert_close(state(method, optimizer), expected, rtol=0, atol=0)
    assert progress == Progress(STEP, HISTORY, [2], stateless=["unused.weight"])


@pytest.mark.sample(6)
@pytest.mark.parametrize("change", ["step=1000000", "without ^optimizer/", "history=None"])
def test_a_run_says_so_and_leaves_its_folder(tmp_path: Path, change: str) -> None:
    run = configure(tmp_path)
    with pytest.raises(Interrupted):
        execute(run, report=stop_after(3), say=quiet)
    rewrite(run.folder.checkpoint, CHANGES[change])
    before = {file: file.read_bytes() for file in run.folder.path.rglob("*") if file.is_file()}
    with pytest.raises(RecordError, match="is no checkpoint of this run"):
        execute(run, say=quiet)
    after = {file: file.read_bytes() for file in run.folder.path.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.sample(6)
@pytest.mark.parametrize("pattern", ["^method/ipt/", "^method/", "^method/exp_avg_unc/.*lora_A", "method/.*lora_E"])
def test_the_state_of_adalora(tmp_path: Path, pattern: str) -> None:
    run = configure(tmp_path, "structure=peft_adalora")
    with pytest.raises(Interrupted):
        execute(run, report=stop_after(5), say=quiet)
    rewrite(run.folder.checkpoint, drop(pattern))
    with pytest.raises(RecordError, match=r"AdaLoRA's .* is of other parameters than this run trains"):
        execute(run, say=quiet)
