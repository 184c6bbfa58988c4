"""Updates in a compiled graph for a GPU, which are plain torch, give the numbers of dense matrices in float64."""

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from surm import SurmConfig
from surm.structures import backends, build
from surm.structures.backends import updates
from surm.structures.ops import updated_linear
from surm.structures.traced import traces
from tests.structures.twin import assert_dense

CASES = [
    ("circulant", {"terms": 2}),
    ("circulant", {"parametrization": "direct"}),
    ("skew_circulant", {}),
    ("toeplitz", {"factors": 1, "symmetric": False}),
    ("toeplitz", {"factors": 1, "symmetric": True, "terms": 2}),
    ("toeplitz", {"symmetric": False}),
    ("toeplitz", {"terms": 2}),
    ("ldr", {"terms": 2}),
    ("kronecker", {"terms": 2}),
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("beside", ["weight", "sum", "output", "nothing"])
@pytest.mark.parametrize(("m", "n"), [(12, 12), (6, 20), (20, 9)])
@pytest.mark.parametrize(("structure", "options"), CASES)
@pytest.mark.sample(18)
def test_two_parts_of_one_layer_have_the_numbers_of_dense_matrices(structure, options, m, n, beside):
    check(structure, options, m, n, beside, updated_linear)


@pytest.mark.parametrize(("structure", "options"), CASES)
@pytest.mark.sample(3)
def test_compiled_in_one_graph_without_an_operator(structure, options):
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph.print_readable(print_output=False))
        return graph

    check(structure, options, 12, 8, "weight", torch.compile(updated_linear, backend=backend, fullgraph=True))
    assert len(graphs) == 1
    assert "ops.surm" not in graphs[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_layer_is_compiled_in_one_graph(monkeypatch, autocast):
    torch.compiler.reset()
    torch.manual_seed(0)
    config = SurmConfig(structure="circulant", target_modules=["0"], init_weights=False)
    layer = get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 10)), config).base_model.model[0]
    x, trained = draw(2, 3, 12).requires_grad_(), [p for p in layer.parameters() if p.requires_grad]

    def step(module):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = module(x)
        return [y, *torch.autograd.grad(y.float().square().sum(), [x, *trained])]

    eager = step(layer)
    monkeypatch.setattr(backends, "_way", lambda *_: ("traced", True))
    for found, expected in zip(step(torch.compile(layer, backend="aot_eager", fullgraph=True)), eager, strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() < (1e-2 if autocast else 1e-5) * expected.norm()


def check(structure, options, m, n, beside, compute):
    torch.manual_seed(0)
    parts, alpha = [build(structure, m, n, **options) for _ in range(2)], -0.5
    for part in parts:
        part.reset_parameters(False)
    weight = draw(2 * m, n, seed=2) if beside in ("weight", "sum") else None
    base = draw(7, 2 * m) if beside == "output" else None
    x, g = draw(7, n).requires_grad_(), draw(7, 2 * m, seed=1)
    listed = [
        update._replace(way="traced", outer=True)
        for index, part in enumerate(parts)
        for update in updates(part, x, slice(m * index, m * index + m), alpha)
    ]
    y = compute(x, weight, None, 2 * m, listed, together=beside == "sum", base=base)
    assert_dense(y, parts, alpha, x, g, weight=weight, base=base, within=1e-5)


def test_matrices_that_are_traced():
    assert traces("circulant", 768, 768, torch.bfloat16)
    assert traces("ldr", 384, 1024, torch.float16)
    assert traces("kronecker", 384, 384, torch.float32)
    assert not traces("circulant", 768, 768, torch.float32)
    assert not traces("circulant", 4096, 64, torch.bfloat16)
    assert not traces("circulant", 64, 64, torch.float64)
    assert not traces("low_rank", 64, 64, torch.bfloat16)
