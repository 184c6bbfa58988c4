"""What a method may do while it trains, by a toy method that does all of it, through the loop itself."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surm.methods.base import Method
from surm.methods.registry import METHODS
from surm.shared.errors import Interrupted
from surm.training.run import execute
from tests.tools.runs import configure, quiet, stop_after

SECOND_STAGE = 12  # the first step in which weights are trained in place of biases
OPTIONS = ["structure.name=toy", "trainer.gradient_accumulation=2", "trainer.batch_size=32", "optim.lr=0.01"]


class Toy(Method):
    """Trains the biases of LayerNorms, then their weights; an extra loss grows with the gradients seen so far."""

    name = "toy"
    uses_placement = False
    last: "Toy"  # that was made

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        Toy.last = self
        self.average, self.second = torch.tensor(0.0), False
        self.calls: list[str] = []
        self.norms: list[tuple[float, float]] = []  # of all gradients: after the backward pass, after the step
        self.moved: list[dict[str, float]] = []

    def _apply(self, backbone: Any, placement: Any, steps: int) -> nn.Module:
        self.norm_layers = [layer for layer in backbone.module.modules() if isinstance(layer, nn.LayerNorm)]
        for name, parameter in backbone.module.named_parameters():
            parameter.requires_grad_(self.in_head(name))
        self._set_stage(backbone.module, second=False)
        return backbone.module

    def _set_stage(self, module: nn.Module, *, second: bool) -> None:
        self.second = second
        for layer in self.norm_layers:
            layer.bias.requires_grad_(not second)
            layer.weight.requires_grad_(second)

    def _names_of_trained(self) -> Iterable[str]:
        members = {id(parameter) for layer in self.norm_layers for parameter in layer.parameters()}
        named = self.module.named_parameters()
        return [name for name, parameter in named if id(parameter) in members or self.in_head(name)]

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for _, p in self.trained_parameters() if p.grad is not None]
        return torch.stack([gradient.norm() for gradient in gradients]).norm()

    def extra_loss(self) -> Tensor:
        self.calls.append("extra_loss")
        return self.average * torch.stack([layer.bias.square().sum() for layer in self.norm_layers]).sum()

    def after_backward(self, step: int) -> None:
        self.calls.append(f"after_backward {step}")
        self.average = 0.9 * self.average + 0.1 * self._gradient_norm()
        self.before = {name: parameter.detach().clone() for name, parameter in self.trained_parameters()}
        self.unclipped = self._gradient_norm().item()

    def after_step(self, step: int) -> None:
        self.calls.append(f"after_step {step}")
        self.norms.append((self.unclipped, self._gradient_norm().item()))
        change = {name: (p - self.before[name]).abs().max().item() for name, p in self.trained_parameters()}
        self.moved.append(change)
        if step == SECOND_STAGE - 1:
            self._set_stage(self.module, second=True)

    def finish(self) -> None:
        self.calls.append("finish")
        with torch.no_grad():
            for layer in self.norm_layers:
                layer.bias.zero_()
                layer.weight.requires_grad_(False)

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.average, "second": torch.tensor(self.second)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.average = state["average"]
        self._set_stage(self.module, second=bool(state["second"]))


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", Toy)


def test_a_method_with_state_and_two_stages_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = execute(configure(tmp_path / "whole", *OPTIONS), say=quiet)
    run = configure(tmp_path / "parts", *OPTIONS)
    stops = [4, SECOND_STAGE, 20]  # in the first stage, between the stages, in the second
    for step in stops:
        with pytest.raises(Interrupted):
            execute(run, report=stop_after(step), say=quiet)
    resumed = execute(run, say=quiet)
    assert resumed.happened["resumed_from_steps"] == stops
    for key in ("metrics", "history", "trainable_parameters", "peak_trainable_parameters"):
        assert resumed.happened[key] == whole.happened[key]
    folders = (tmp_path / name / "runs" / whole.signature for name in ("whole", "parts"))
    one, other = ((folder / "trained.safetensors").read_bytes() for folder in folders)
    assert one == other


def test_hooks_are_called_in_their_order(tmp_path: Path) -> None:
    execute(configure(tmp_path, *OPTIONS, "trainer.max_steps=2"), say=quiet)
    step = ["extra_loss", "extra_loss", "after_backward {0}", "after_step {0}"]  # two batches are accumulated
    assert Toy.last.calls == [*(call.format(0) for call in step), *(call.format(1) for call in step), "finish"]


def test_gradients_are_clipped_between_the_hooks(tmp_path: Path) -> None:
    execute(configure(tmp_path, *OPTIONS, "trainer.max_steps=3", "optim.max_grad_norm=1e-3"), say=quiet)
    assert len(Toy.last.norms) == 3
    for unclipped, clipped in Toy.last.norms:
        assert unclipped > 0.01
        assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_what_finish_leaves_is_evaluated_counted_and_saved(tmp_path: Path) -> None:
    record = execute(configure(tmp_path, *OPTIONS), say=quiet)
    norms = Toy.last.norm_layers
    assert all((layer.bias == 0).all() for layer in norms)
    assert record.happened["trainable_parameters"] == 0  # all but the head is frozen at the end
    assert record.happened["peak_trainable_parameters"] == sum(2 * len(layer.bias) for layer in norms)
    assert record.happened["head_parameters"] == 48 * 10 + 10


def test_the_head_may_have_a_rate_of_its_own(tmp_path: Path) -> None:
    """Adam's first step moves every parameter by its rate, whatever its gradient."""
    short = ["trainer.max_steps=1", "optim.weight_decay=0", "optim.warmup_ratio=0", "optim.max_grad_norm=null"]
    for given, of_head in ((["optim.head_lr=0.04"], 0.04), ([], 0.01)):
        execute(configure(tmp_path / str(of_head), *OPTIONS, *short, *given), say=quiet)
        biases = {name: moved for name, moved in Toy.last.moved[0].items() if name.endswith(".bias")}
        for name, moved in biases.items():
            assert moved == pytest.approx(of_head if name == "head.bias" else 0.01, rel=1e-3)
        assert len(biases) > 2
