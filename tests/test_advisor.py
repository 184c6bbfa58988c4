"""The advisor against dense least squares on gradients that plain autograd gives in float64."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from surm.advisor import EXACT, Advice, advise

M, N = 6, 9
LAYERS = {"first": (M, N), "second": (8, M)}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(N, M))
    model.add_module("act", nn.Tanh())
    model.add_module("dropout", nn.Dropout(0.5))
    model.add_module("second", nn.Linear(M, 8))
    return model


BATCHES = [
    (torch.randn(5, N, generator=torch.Generator().manual_seed(i)), torch.arange(5).roll(i) % 8) for i in range(3)
]


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def run(model: nn.Module | None = None, **options: Any) -> Advice:
    return advise(model or make_model(), BATCHES, loss_fn, **{"target_modules": list(LAYERS)} | options)


def true_gradients() -> dict[str, np.ndarray]:
    model = make_model().double().eval()
    for x, y in BATCHES:
        cross_entropy(model(x.double()), y).backward()
    return {name: model.get_submodule(name).weight.grad.numpy() for name in LAYERS}


def basis(family: str, m: int, n: int) -> np.ndarray:
    """The family's matrices for unit generators, from SciPy's dense constructors: (dimension, m n)."""
    K = max(m, n)
    units = np.eye(K)
    if family == "circulant":
        members = [scipy.linalg.circulant(unit)[:m, :n] for unit in units]
    elif family == "skew_circulant":
        sign = np.where(np.arange(K)[:, None] < np.arange(K), -1, 1)
        members = [(sign * scipy.linalg.circulant(unit))[:m, :n] for unit in units]
    elif family == "toeplitz_symmetric":
        members = [scipy.linalg.toeplitz(unit)[:m, :n] for unit in units]
    else:
        diagonals = np.eye(m + n - 1)
        members = [scipy.linalg.toeplitz(unit[n - 1 :], unit[:n][::-1]) for unit in diagonals]
    return np.array(members).reshape(len(members), -1)


def dense_share(family: str, G: np.ndarray) -> float:
    if family == "low_rank":
        values = np.linalg.svd(G, compute_uv=False)
        return values[0] ** 2 / (values**2).sum()
    A = basis(family, *G.shape).T
    solution, *_ = np.linalg.lstsq(A, G.ravel(), rcond=None)
    return 1 - np.sum((G.ravel() - A @ solution) ** 2) / np.sum(G**2)


@pytest.mark.parametrize("family", [name for name in EXACT if name != "kronecker"])
def test_captured_share_is_the_dense_projection_of_the_float64_gradient(family: str) -> None:
    gradients = true_gradients()
    advice = run(structures=[family])
    assert [score.layer for score in advice.scores] == list(LAYERS)
    for score in advice.scores:
        G = gradients[score.layer]
        assert score.shape == G.shape
        assert score.norm == pytest.approx(np.linalg.norm(G), rel=1e-5)
        assert score.captured == pytest.approx(dense_share(family, G), rel=1e-4)
    (total,) = advice.totals
    energy = {name: np.sum(G**2) for name, G in gradients.items()}
    kept = sum(dense_share(family, G) * energy[name] for name, G in gradients.items())
    assert total.captured == pytest.approx(kept / sum(energy.values()), rel=1e-4)


@pytest.mark.parametrize("family", EXACT)
def test_the_expectation_is_that_of_gaussian_matrices(family: str) -> None:
    score = run(structures=[family]).scores[0]
    if family == "kronecker":  # one term of the 2 x 3 blocks that 6 x 9 has is a rank-one matrix of another shape
        m1, n1 = 3, 3
        assert score.parameters == m1 * n1 + M * N // (m1 * n1)

        def share(G: np.ndarray) -> float:
            blocks = G.reshape(m1, M // m1, n1, N // n1).transpose(0, 2, 1, 3).reshape(m1 * n1, -1)
            return dense_share("low_rank", blocks)
    else:

        def share(G: np.ndarray) -> float:
            return dense_share(family, G)

    draws = np.random.default_rng(1).standard_normal((400, M, N))
    shares = [share(draw) for draw in draws]
    linear = family not in ("kronecker", "low_rank")
    # A linear family's expectation is exact; the others' is a mean of three draws.
    tolerance = 4 * np.std(shares) * (400**-0.5 if linear else 3**-0.5)
    assert score.expected == pytest.approx(np.mean(shares), abs=tolerance)


def planted(family: str, size: int = 12) -> np.ndarray:
    generator = np.random.default_rng(2)
    if family == "kronecker":
        return np.kron(generator.standard_normal((4, 3)), generator.standard_normal((3, 4)))
    if family == "low_rank":
        return np.outer(generator.standard_normal(size), generator.standard_normal(size))
    members = basis(family, size, size)
    return (generator.standard_normal(len(members)) @ members).reshape(size, size)


# Not general Toeplitz: circulant and skew-circulant halves make it up, and one of them captures more a parameter.
@pytest.mark.parametrize("family", [name for name in EXACT if name != "toeplitz_general"])
def test_a_planted_structure_is_recommended(family: str) -> None:
    G = torch.from_numpy(planted(family)).float()
    model = nn.Sequential(nn.Linear(12, 12))
    advice = advise(model, [G], lambda model, batch: (model[0].weight * batch).sum(), target_modules=["0"])
    best = advice.totals[0]
    assert best.family == family
    assert best.captured == pytest.approx(1, abs=1e-6)
    assert advice.recommendation.startswith(f"{family} stands out")
    assert f"structure={best.structure!r}" in advice.recommendation


def test_groups_under_a_memory_limit_give_the_same_scores() -> None:
    assert run(memory_limit=1).scores == run().scores


@pytest.mark.parametrize("update", ["gradient", "finetune"])
def test_the_model_comes_back_as_it_was(update: str) -> None:
    model = make_model().train()
    model.get_submodule("dropout").eval()
    model.get_submodule("first").bias.requires_grad_(False)
    model.get_submodule("second").weight.grad = torch.full((8, M), 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    run(model, update=update)
    with pytest.raises(ZeroDivisionError):
        advise(model, [0], lambda model, batch: 1 / batch, target_modules=["first"])

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert model.get_submodule("first").weight.grad is None
    assert torch.equal(model.get_submodule("second").weight.grad, torch.full((8, M), 7.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_finetune_of_one_batch_is_adams_first_step() -> None:
    model = make_model().eval()
    loss_fn(model, BATCHES[0]).backward()
    G = model.get_submodule("first").weight.grad.double().numpy()
    change = -1e-3 * G / (np.abs(G) + 1e-8)
    advice = advise(
        make_model(),
        BATCHES[:1],
        loss_fn,
        target_modules=["first"],
        structures=["low_rank"],
        update="finetune",
        learning_rate=1e-3,
    )
    assert advice.scores[0].norm == pytest.approx(np.linalg.norm(change), rel=1e-3)
    assert advice.scores[0].captured == pytest.approx(dense_share("low_rank", change), rel=1e-3)


def test_a_fused_projection_counts_as_three() -> None:
    def names_and_shares(model: nn.Module, ending: str) -> list[float]:
        batch = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
        found = advise(model, [batch], lambda model, x: model(x).square().sum(), target_modules=[ending])
        assert {score.shape for score in found.scores} == {(5, 5)}
        return [score.captured for score in found.scores]

    torch.manual_seed(1)
    fused = nn.ModuleDict({"qkv": nn.Linear(5, 15)})
    fused.forward = lambda x: fused["qkv"](x)  # type: ignore[method-assign]
    parts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
    for part, weight, bias in zip(parts, fused["qkv"].weight.chunk(3), fused["qkv"].bias.chunk(3), strict=True):
        part.load_state_dict({"weight": weight, "bias": bias})
    parts.forward = lambda x: torch.cat([part(x) for part in parts], dim=-1)  # type: ignore[method-assign]
    apart = [share for i in range(3) for share in names_and_shares(parts, str(i))]
    assert names_and_shares(fused, "qkv") == pytest.approx(apart)


def test_own_families_and_the_rank_of_the_same_cost() -> None:
    G = true_gradients()["second"]
    advice = run(structures={"two": ("low_rank", {"rank": 2}), "sum": ("circulant+skew_circulant", {})})
    two = next(score for score in advice.scores if (score.layer, score.family) == ("second", "two"))
    values = np.linalg.svd(G, compute_uv=False)
    assert two.rank == 2
    assert two.parameters == 2 * (8 + M)
    assert two.captured == pytest.approx(np.sum(values[:2] ** 2) / np.sum(values**2), rel=1e-5)
    assert two.captured_by_rank == pytest.approx(two.captured, rel=1e-6)


def test_json_holds_totals_scores_and_layers_without_gradient() -> None:
    model = make_model()
    model.add_module("unused", nn.Linear(3, 3))
    used = copy.deepcopy(model)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model.second(model.first(batch[0])), batch[1])

    advice = advise(used, BATCHES, loss, target_modules=["first", "unused"], structures=["circulant"])
    stored = json.loads(advice.to_json())
    assert stored["left_out"] == ["unused"]
    assert stored["recommendation"] == advice.recommendation
    assert [row["layer"] for row in stored["scores"]] == ["first"]
    assert stored["totals"][0]["gain"] == pytest.approx(stored["scores"][0]["gain"])
    assert stored["scores"][0]["gain"] == stored["scores"][0]["captured"] / stored["scores"][0]["expected"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"structures": ["circulent"]}, "choose one or more of circulant, skew_circulant"),
        ({"structures": []}, "choose one or more of"),
        ({"update": "hessian"}, "choose one of gradient, finetune"),
        ({"target_modules": ["third"]}, r"target_modules=\['third'\]: Sequential has no such nn.Linear"),
        ({"target_modules": None}, "specify `target_modules`"),
        ({"structures": {"odd": ("kronecker", {"factor_shape": [4, 3]})}}, "does not fit a 6 x 9 matrix"),
    ],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(**options)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda model, batch: model(batch[0]), r"a tensor of shape \(5, 8\): return the loss"),
        (lambda model, batch: 1.0, "gives float: return the loss"),
        (lambda model, batch: batch[0].sum(), "does not depend on any target weight"),
        (lambda model, batch: model.get_submodule("first").weight.sum() * 0, "does not depend on any target weight"),
    ],
)
def test_a_loss_that_cannot_be_used_is_named(loss: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        advise(make_model(), BATCHES, loss, target_modules=["first"])


def test_an_iterator_and_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="can be read once only"):
        advise(make_model(), iter(BATCHES), loss_fn, target_modules=["first"])
    with pytest.raises(ValueError, match="at least one batch"):
        advise(make_model(), [], loss_fn, target_modules=["first"])
