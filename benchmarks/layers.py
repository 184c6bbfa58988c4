"""One frozen linear layer and the ways to train it: PEFT's methods, the structures, and plainer ways to have those."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import (
    BOFTConfig,
    C3AConfig,
    FourierFTConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.measure import Candidate, Step, candidate, measure
from benchmarks.modes import compiled, replayed
from benchmarks.result import FLOOR, LORA, PLAIN, Cell
from surm import structures
from surm.methods.names import style_of
from surm.structures import Structure, build
from surm.tuners import SurmConfig

Build = Callable[[nn.Linear], nn.Module]
Config = Callable[..., PeftConfig]

LARGE = 4e10  # tokens x width^2, above which only the floor, LoRA and our structures are measured
LARGE_ROUNDS = 3
WIDTH = "width"  # stands for the layer's among arguments
CHOSEN: dict[str, tuple[str, dict[str, Any]]] = {
    "circulant": ("circulant", {"parametrization": "product"}),
    "direct circulant": ("circulant", {"parametrization": "direct"}),
    "skew-circulant": ("skew_circulant", {}),
    "Kronecker": ("kronecker", {}),
    "one-factor Toeplitz": ("toeplitz", {"factors": 1, "symmetric": False}),
    "symmetric one-factor Toeplitz": ("toeplitz", {"factors": 1, "symmetric": True}),
    "symmetric Toeplitz pair": ("toeplitz", {}),
    "ldr 1 term": ("ldr", {}),
    "ldr 4 terms": ("ldr", {"terms": 4}),
    "low rank 1": ("low_rank", {}),
}
# Every other structure joins with its usual options, under the name that tables give it.
STRUCTURES = CHOSEN | {
    style_of(name).label: (name, {})
    for name in structures.STRUCTURES
    if name not in {chosen for chosen, _ in CHOSEN.values()}
}
FORMULAS = {  # the paper's, as written: second products beside the frozen layer's
    "circulant by real FFT": "circulant",
    "Kronecker by its factors": "Kronecker",
    "Toeplitz pair by zero-padded FFT": "symmetric Toeplitz pair",
    "circulant times skew-circulant": "ldr 1 term",
}


@dataclass(frozen=True)
class Layer:
    """One way to train a frozen layer; `build` makes the trained layer of it."""

    name: str
    kind: str
    build: Build


# --- the ways ---------------------------------------------------------------------------------------------------------


def peft_layer(name: str, config: Config, kind: str = "peft", **arguments: Any) -> Layer:
    """A method of PEFT; an argument "width" stands for the layer's."""
    return Layer(name, kind, partial(_adapted, config, arguments))


def configured(config: Config, arguments: Mapping[str, Any], width: int) -> PeftConfig:
    return config(target_modules=["layer"], **{key: width if is_width(v) else v for key, v in arguments.items()})


def is_width(value: Any) -> bool:
    return isinstance(value, str) and value == WIDTH


def _adapted(config: Config, arguments: Mapping[str, Any], base: nn.Linear) -> nn.Module:
    model = nn.Sequential(OrderedDict(layer=base))
    layer = get_peft_model(model, configured(config, arguments, base.in_features)).get_submodule(
        "base_model.model.layer"
    )
    if not isinstance(layer, BaseTunerLayer):
        raise TypeError("this method does not adapt a linear layer.")
    return layer


def _frozen(base: nn.Linear) -> nn.Module:
    return base.requires_grad_(False)


def _full(base: nn.Linear) -> nn.Module:
    return base


class _Beside(nn.Module):
    """W x + b + S x by the structure's own product."""

    def __init__(self, structure: str, options: Mapping[str, Any], base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.structure: Structure = build(structure, base.out_features, base.in_features, **options)
        self.structure.to(base.weight.device)
        for part in self.structure.summands():
            if part.needs_weight:
                part.attach(base.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.structure(x)
        return y


class _PlainDense(_Beside):
    """The same by a dense S, which autograd forms and differentiates."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + linear(x, self.structure.dense().to(x.dtype))
        return y


BOFT = peft_layer("BOFT block 32", BOFTConfig, boft_block_size=32)


def layers(backend: str = "auto", *, boft: bool = False) -> dict[str, Layer]:
    """All layers by name; `backend` is that of our structures, and `boft` adds the slowest of PEFT's methods."""
    ours = {} if backend == "auto" else {"backend": backend}
    found = [
        Layer(FLOOR, "floor", _frozen),
        Layer("full fine-tuning", "full", _full),
        peft_layer(LORA, LoraConfig, r=1),
        peft_layer("LoRA r=8", LoraConfig, r=8),
        peft_layer("OFT block 32", OFTConfig, oft_block_size=32),
        peft_layer("VeRA r=256", VeraConfig, r=256),
        peft_layer("C3A one block", C3AConfig, block_size=WIDTH),
        peft_layer("C3A block 64", C3AConfig, block_size=64),
        peft_layer("LoKr full factors", LoKrConfig, r=WIDTH),  # a rank as large as this makes both factors full
        peft_layer("FourierFT n=1000", FourierFTConfig, n_frequency=1000),
        *([BOFT] if boft else []),
        *(Layer(name, "paper", partial(_Beside, *STRUCTURES[structure])) for name, structure in FORMULAS.items()),
        *(Layer(PLAIN + name, "plain", partial(_PlainDense, *chosen)) for name, chosen in STRUCTURES.items()),
        *(
            peft_layer(name, SurmConfig, "ours", structure=structure, structure_options=options, **ours)
            for name, (structure, options) in STRUCTURES.items()
        ),
    ]
    return {layer.name: layer for layer in found}


SHOWN_PLAIN = (PLAIN + "circulant", PLAIN + "Kronecker")  # the others where they are asked for, or by --full
EVERY_PLAIN = 4e9  # tokens x width^2, up to which: beyond, forming D is little beside the products, and alike for all


# --- their measurement ------------------------------------------------------------------------------------------------


def measure_layers(
    chosen: Iterable[Layer],
    width: int,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    rounds: int,
    seconds: float | None = None,
    mode: str = "",
    reference: str = FLOOR,
) -> Cell:
    """One forward and backward pass of each layer, with the input's gradient, relative to the frozen layer's.

    The input has three dimensions, as in a model; autograd can add up its gradients in place in two alone. On a CPU,
    above `tokens` x `width`^2 = 4e10, of the layers only the frozen one, LoRA and ours, in 3 rounds.

    mode: "eager", "graph" or "compiled" (see `benchmarks.modes`), which the cell's place then names.
    reference: name of the layer whose ratios are 1.
    """
    if device.type == "cpu" and tokens * width**2 > LARGE:
        chosen = [layer for layer in chosen if layer.kind in ("floor", "ours") or layer.name.startswith("LoRA")]
        rounds = min(rounds, LARGE_ROUNDS)
    torch.manual_seed(0)
    x = torch.randn(1, tokens, width, dtype=dtype, device=device, requires_grad=True)
    g = torch.randn(1, tokens, width, dtype=dtype, device=device)
    place = {"width": width, "tokens": tokens, "dtype": str(dtype).removeprefix("torch."), "device": device.type}
    place |= {"mode": mode} if mode else {}
    candidates = [_candidate(layer, x, g, mode) for layer in chosen]
    return measure(
        place, candidates, reference, rounds=rounds, device=device, seconds=seconds, memory=mode in ("", "eager")
    )


def _candidate(layer: Layer, x: Tensor, g: Tensor, mode: str) -> Candidate:
    def make() -> tuple[Step, int]:
        module = layer.build(nn.Linear(x.shape[-1], x.shape[-1], dtype=x.dtype, device=x.device))
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if layer.kind != "full":
            for parameter in trained:  # no update is zero, so that nothing can be left out
                nn.init.normal_(parameter, std=0.02)
        if mode == "compiled":
            compiled(module, x.device)

        def step() -> None:
            module(x).backward(g)
            x.grad = None
            for parameter in trained:
                parameter.grad = None

        return replayed(step) if mode == "graph" else step, sum(parameter.numel() for parameter in trained)

    return candidate(layer.name, layer.kind, make)
