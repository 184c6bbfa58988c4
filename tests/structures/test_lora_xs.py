import numpy as np
import pytest
import torch
from torch import Tensor

from surm.structures import Structure, build, structure_class
from surm.structures.lora_xs import leading_svd


def of(weight: Tensor, R: Tensor | None = None, **options) -> Structure:
    structure = build("lora_xs", *weight.shape, dtype=weight.dtype, **options)
    structure.attach(weight)
    structure.reset_parameters(False)
    if R is not None:
        structure.load_state_dict({"R": R}, strict=False)
    return structure


def draw(m: int = 9, n: int = 7) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64)


def test_the_worked_example() -> None:
    structure = of(torch.diag(torch.tensor([3.0, 2])).double(), torch.tensor([[0.5]]), rank=1)
    assert structure.dense().tolist() == [[1.5, 0], [0, 0]]
    assert structure(torch.eye(2)).T.tolist() == [[1.5, 0], [0, 0]]


def test_the_bases_are_the_weights_and_their_product_its_best_approximation() -> None:
    weight = draw()
    structure = of(weight, 2 * torch.eye(3), rank=3)
    B, A = structure.B.numpy(), structure.A.numpy()
    U, S, Vh = np.linalg.svd(weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(B.T @ B, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(A @ A.T, np.diag(S[:3] ** 2), atol=1e-12)
    np.testing.assert_allclose(structure.dense().detach(), 2 * (U[:, :3] * S[:3]) @ Vh[:3], atol=1e-12)
    assert (B[np.abs(B).argmax(axis=0), range(3)] > 0).all()
    flipped = of(-weight, rank=3)  # the sign of a column is that of its largest entry, whatever the decomposition gave
    torch.testing.assert_close(flipped.B, structure.B)
    torch.testing.assert_close(flipped.A, -structure.A)


def test_the_start_is_zero_with_a_gradient_or_the_authors() -> None:
    torch.manual_seed(0)
    structure = of(torch.randn(384, 384))
    assert structure.R.shape == (27, 27)
    structure.reset_parameters()
    assert not structure.dense().any()
    (gradient,) = torch.autograd.grad(
        (structure(torch.randn(5, 384)) * torch.randn(5, 384)).sum(), list(structure.parameters())
    )
    assert gradient.abs().min() > 0
    structure.reset_parameters("authors")
    assert structure.R.std().item() == pytest.approx(1e-5, rel=0.1)


def test_the_nearest_member_is_the_least_squares_solution() -> None:
    weight, matrix = draw(), draw()
    nearest = structure_class("lora_xs").nearest(matrix, weight=weight, rank=3)
    B, A = nearest.B.numpy(), nearest.A.numpy()
    expected = np.linalg.lstsq(np.kron(B, A.T), matrix.numpy().ravel(), rcond=None)[0].reshape(3, 3)
    np.testing.assert_allclose(nearest.R.detach(), expected, atol=1e-12)
    square, target = draw(6, 6), draw(6, 6)  # with all bases of an invertible weight every matrix is a member
    torch.testing.assert_close(structure_class("lora_xs").nearest(target, weight=square, rank=6).dense(), target)
    singular = structure_class("lora_xs").nearest(matrix, weight=torch.zeros(9, 7), rank=3)
    assert not singular.dense().any()
    for wrong in (None, draw(7, 9)):
        with pytest.raises(ValueError, match="nearest member depends on a weight; give weight= of matrix's shape"):
            structure_class("lora_xs").nearest(matrix, weight=wrong)


@pytest.mark.parametrize("shape", [(120, 200), (200, 120)])
def test_the_randomised_decomposition_is_close_to_the_whole_one(shape: tuple[int, int], monkeypatch) -> None:
    """Singular values that fall as 1 / (1 + i / 4), as a trained layer's; the caller's generator is left alone."""
    U, V = (np.linalg.qr(np.random.default_rng(side).standard_normal((side, 120)))[0] for side in shape)
    matrix = torch.from_numpy(U / (1 + np.arange(120) / 4) @ V.T)
    exact = leading_svd(matrix, 6)
    monkeypatch.setattr("surm.structures.lora_xs.EXACT", 100)
    state = torch.get_rng_state()
    found = leading_svd(matrix, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(found[0], exact[0])
    for ours, whole in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)
    for first, second in zip(leading_svd(matrix, 6), found, strict=True):
        assert torch.equal(first, second)


def test_it_collapses_to_low_rank() -> None:
    structure = of(draw(), rank=3)
    collapsed = structure.collapse()
    assert (collapsed.name, collapsed.options) == ("low_rank", {"rank": 3, "terms": 1})
    torch.testing.assert_close(collapsed.dense(), structure.dense())


def test_bases_are_saved_or_not_and_those_of_a_file_come_before_the_weights() -> None:
    weight = draw()
    assert of(weight, save_bases=False).state_dict().keys() == {"R"}
    structure = of(weight)
    assert structure.state_dict().keys() == {"R", "B", "A"}
    waiting = build("lora_xs", 9, 7, dtype=torch.float64)
    with pytest.raises(ValueError, match="lora_xs is made from the weight that it updates"):
        waiting.dense()
    waiting.load_state_dict(structure.state_dict())
    waiting.attach(draw())
    assert torch.equal(waiting.dense(), structure.dense())
    assert torch.equal(waiting.bfloat16().double().B, structure.B)  # which no cast rounds
    with pytest.raises(ValueError, match="which has no storage yet"):
        waiting.to("meta").to_empty(device="cpu").dense()


def test_a_rank_above_the_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=8 is more than a 9 x 7 weight has singular values; give at most 7"):
        build("lora_xs", 9, 7, rank=8)


@pytest.mark.parametrize(
    ("size", "matrices", "counts"),
    [
        (1024, 96, {4: 1_536, 8: 6_144, 12: 13_824, 16: 24_576, 20: 38_400, 25: 60_000}),
        (4096, 224, {16: 57_344, 32: 229_376, 64: 917_504}),
        (768, 24, {1: 24, 8: 1_536, 25: 15_000, None: 36_504, 40: 38_400}),
        (768, 36, {8: 2_304, None: 54_756}),
        (384, 12, {None: 8_748, 28: 9_408}),
        (384, 18, {None: 13_122, 28: 14_112}),
        (384, 36, {None: 26_244, 28: 28_224}),
    ],
)
def test_parameters_of_published_settings(size: int, matrices: int, counts: dict[int | None, int]) -> None:
    """By rank, of RoBERTa-large, 7B models, BERT-base (q, v; q, k, v), MiniLM (the same), ViT-S; None: the default."""
    family = structure_class("lora_xs")
    assert {rank: matrices * family.num_parameters(size, size, rank=rank) for rank in counts} == counts
