"""Adapted layers on a GPU: numbers against float64, no waiting for the device, CUDA graphs, compilation, memory.

The dense twins of `tests/contract` are the reference. Skipped where CUDA sees no GPU; `make benchmark-gpu` runs them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.layers import LORA, layers
from benchmarks.measure import peak_bytes
from benchmarks.modes import replayed
from surm import SurmConfig
from surm.structures import Structure
from tests.contract.cases import draw, twin
from tests.contract.rows import ROWS, Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA sees no GPU"),
]

SHAPES = {"square": (64, 64), "wide": (48, 80), "tall": (96, 36), "prime": (67, 67)}
ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}  # relative, of whole tensors
TOKENS = 96
NAMES = ("circulant", "Kronecker", "one-factor Toeplitz", "symmetric Toeplitz pair", "ldr 1 term")
rows = pytest.mark.parametrize("row", ROWS, ids=str)


class Layer:
    """A frozen linear layer with a random update on the GPU, and the same in float64 on the CPU."""

    def __init__(self, row: Row, m: int, n: int, dtype: torch.dtype, backend: str = "auto") -> None:
        torch.manual_seed(m + n)
        base = nn.Linear(n, m, dtype=dtype, device="cuda")
        config = SurmConfig(
            structure=row.name, structure_options=row.options, target_modules=["0"], backend=backend, alpha=0.5
        )
        self.row, self.base = row, base
        self.module = adapted(base, config)
        [self.structure] = [each for each in self.module.modules() if isinstance(each, Structure)][:1]
        with torch.no_grad():
            for number, parameter in enumerate(self.structure.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=number) / math.sqrt(max(1, parameter.shape[-1])))
        self.x = draw(3, TOKENS // 3, n, seed=7).to("cuda", dtype).requires_grad_()
        self.g = draw(3, TOKENS // 3, m, seed=8).to("cuda", dtype)

    def step(self) -> None:
        self.module(self.x).backward(self.g)

    def gradients(self) -> list[Tensor]:
        found = [self.x.grad, *(parameter.grad for parameter in self.structure.parameters())]
        assert all(gradient is not None for gradient in found)
        return [gradient for gradient in found if gradient is not None]

    def clear(self) -> None:
        self.x.grad = None
        for parameter in self.structure.parameters():
            parameter.grad = None

    def expected(self) -> list[Tensor]:
        """Output, gradient of the input and of the parameters, in float64.

        By the dense twin; of a structure made from its layer's weight or name, which the twin does not know, by its
        own matrix on the CPU.
        """
        W, b, x, g = (tensor.detach().double().cpu() for tensor in (self.base.weight, self.base.bias, self.x, self.g))
        x.requires_grad_()
        own = self.structure.cpu().double()
        D = own.dense() if own.needs_weight or own.needs_place else twin(self.row, own)
        y = linear(x, W + 0.5 * D, b)
        return [y.detach(), *torch.autograd.grad(y, [x, *own.parameters()], g)]


def adapted(base: nn.Linear, config: PeftConfig) -> nn.Module:
    return get_peft_model(nn.Sequential(base), config).get_submodule("base_model.model.0")


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double().cpu() - expected).norm() / expected.norm().clamp(min=1e-30))


@contextmanager
def without_waiting() -> Iterator[None]:
    """Refuse whatever makes the host wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@rows
@pytest.mark.parametrize("backend", ["auto", "dense", "fft"])
@pytest.mark.parametrize(("m", "n"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_products_and_gradients_are_those_of_the_dense_twin(
    row: Row, m: int, n: int, dtype: torch.dtype, backend: str
) -> None:
    layer = Layer(row, m, n, dtype, backend)
    y = layer.module(layer.x)
    y.backward(layer.g)
    found = [y, *layer.gradients()]
    for value, expected in zip(found, layer.expected(), strict=True):
        assert error(value, expected) < ERRORS[dtype]


@rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_does_not_wait_for_the_gpu(row: Row, dtype: torch.dtype) -> None:
    layer = Layer(row, 64, 64, dtype)
    layer.step()
    layer.clear()
    with without_waiting():
        layer.step()


@rows
def test_a_step_is_recorded_and_replayed_as_a_graph(row: Row) -> None:
    """The replayed step follows parameters that were changed in place since."""
    layer = Layer(row, 64, 64, torch.bfloat16)

    def step() -> None:
        layer.clear()
        layer.step()

    replay = replayed(step)
    with torch.no_grad():
        for parameter in layer.structure.parameters():
            parameter.mul_(0.5)
    replay()
    found = [gradient.clone() for gradient in layer.gradients()]
    step()
    for value, expected in zip(found, layer.gradients(), strict=True):
        assert value.equal(expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_layer_finds_the_same(name: str, dtype: torch.dtype) -> None:
    module = layers()[name].build(nn.Linear(64, 64, dtype=dtype, device="cuda"))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        nn.init.normal_(parameter, std=0.1)
    x, g = (draw(96, 64, seed=seed).to("cuda", dtype) for seed in (1, 2))
    torch._dynamo.reset()
    both = []
    for each in (module, torch.compile(module, dynamic=False)):
        y = each(x)
        both.append([y, *torch.autograd.grad(y, trained, g)])
    for plain, compiled in zip(*both, strict=True):
        assert error(compiled, plain.double().cpu()) < ERRORS[dtype]


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [2048, 16_384])
def test_peak_memory_of_a_step_is_at_most_that_of_lora(name: str, dtype: torch.dtype, tokens: int) -> None:
    device = torch.device("cuda")
    x = torch.randn(1, tokens, 768, dtype=dtype, device=device, requires_grad=True)
    g = torch.randn_like(x)
    peaks = {}
    for each in (LORA, name):
        module = layers()[each].build(nn.Linear(768, 768, dtype=dtype, device=device))

        def step(module: nn.Module = module) -> None:
            module(x).backward(g)
            x.grad = None
            for parameter in module.parameters():
                parameter.grad = None

        for _ in range(3):
            step()
        peaks[each] = peak_bytes(step, device)
    assert peaks[name] <= peaks[LORA]


def test_a_repeated_step_gives_the_same_bits() -> None:
    for row in ROWS:
        layer = Layer(row, 64, 64, torch.bfloat16)
        layer.step()
        first = [gradient.clone() for gradient in layer.gradients()]
        layer.clear()
        layer.step()
        assert all(again.equal(before) for again, before in zip(layer.gradients(), first, strict=True)), str(row)


def test_lora_itself_does_not_wait() -> None:
    """What the checks above would find in PEFT's own layer."""
    module = adapted(nn.Linear(64, 64, device="cuda"), LoraConfig(r=1, target_modules=["0"]))
    x = torch.randn(8, 64, device="cuda")
    module(x).sum().backward()
    with without_waiting():
        module(x).sum().backward()
