import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surm.structures import Structure, build, structure_class

WHOLE = {
    "B_aux": [[1.0], [2]],
    "A_aux": [[1.0, 0, 2], [0, 1, 1]],
    "B": [[3.0]],
    "A": [[1.0, -1]],
}


def with_factors(structure: Structure, **factors: Tensor | list[list[float]]) -> Structure:
    with torch.no_grad():
        for name, value in factors.items():
            (getattr(structure.frozen, name) if "aux" in name else getattr(structure, name)).copy_(
                torch.as_tensor(value)
            )
    return structure


def random(m: int = 9, n: int = 7, **options) -> Structure:
    structure = build("lora_mini", m, n, dtype=torch.float64, **{"rank": 2, "outer": [3, 4]} | options)
    structure.reset_parameters(False)
    return structure


def test_the_worked_example() -> None:
    structure = with_factors(build("lora_mini", 2, 3, outer=[2, 1], dtype=torch.float64), **WHOLE)
    assert (2 * structure.dense()).tolist() == [[6, -6, 6], [12, -12, 12]]
    assert (2 * structure(torch.eye(3))).T.tolist() == [[6, -6, 6], [12, -12, 12]]


def test_outer_factors_are_orthonormal_and_bound_the_update() -> None:
    structure = random()
    B_aux, A_aux = (structure.frozen.get_buffer(name).double().numpy() for name in ("B_aux", "A_aux"))
    np.testing.assert_allclose(B_aux.T @ B_aux, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(A_aux @ A_aux.T, np.eye(3), atol=1e-6)
    W = structure.dense().detach().numpy()
    assert np.linalg.matrix_rank(W) == 2
    np.testing.assert_allclose(W - B_aux @ (B_aux.T @ W), 0, atol=1e-6)
    np.testing.assert_allclose(W - (W @ A_aux.T) @ A_aux, 0, atol=1e-6)
    identity = with_factors(random(outer=[7, 9]), B_aux=np.eye(9), A_aux=np.eye(7))  # LoRA
    torch.testing.assert_close(identity.dense(), identity.B @ identity.A)


def test_only_the_second_factor_has_a_gradient_at_the_start_and_none_has_at_the_published_one() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(20, 48), torch.randn(20, 48)
    structure = build("lora_mini", 48, 48, rank=8)
    assert structure.options["outer"] == [6, 6]
    assert structure.A.abs().max().item() == pytest.approx(6**-0.5, rel=0.1)
    B_gradient, A_gradient = torch.autograd.grad((structure(x) * g).sum(), [structure.B, structure.A])
    assert B_gradient.abs().min() > 0
    assert not A_gradient.any()
    published = with_factors(
        build("lora_mini", 48, 48, rank=8), B_aux=torch.randn(48, 6), A_aux=torch.randn(6, 48), A=torch.zeros(8, 6)
    )
    for gradient in torch.autograd.grad((published(x) * g).sum(), [published.B, published.A]):
        assert not gradient.any()
    with pytest.raises(ValueError, match="both trained factors are zero there and so are all gradients"):
        structure.reset_parameters("authors")


def test_products_with_the_outer_factors_have_entries_as_large_as_loras() -> None:
    torch.manual_seed(0)
    structure = build("lora_mini", 384, 384, rank=8)
    A = structure.A @ structure.frozen.A_aux
    assert A.std().item() == pytest.approx((3 * 384) ** -0.5, rel=0.1)


@pytest.mark.parametrize("outer", [[3, 4], [7, 9]])
def test_the_nearest_member_keeps_the_leading_part_within_the_bases(outer: list[int]) -> None:
    matrix = torch.randn(9, 7, dtype=torch.float64)
    nearest = structure_class("lora_mini").nearest(matrix, rank=2, outer=outer)
    B_aux, A_aux = (nearest.frozen.get_buffer(name).double().numpy() for name in ("B_aux", "A_aux"))
    U, S, Vh = np.linalg.svd(B_aux.T @ matrix.numpy() @ A_aux.T)
    expected = B_aux @ (U[:, :2] * S[:2]) @ Vh[:2] @ A_aux
    np.testing.assert_allclose(nearest.dense().detach(), expected, atol=1e-6)  # they are rounded to float32


def test_each_place_has_outer_factors_of_its_own_from_one_seed() -> None:
    def placed(name: str, seed: int = 0) -> Tensor:
        structure = random(outer_seed=seed)
        structure.place(name)
        return structure.frozen.B_aux

    assert torch.equal(placed("blocks.0.attn.q"), placed("blocks.0.attn.q"))
    assert not torch.equal(placed("blocks.0.attn.q"), placed("blocks.1.attn.q"))
    assert not torch.equal(placed("blocks.0.attn.q"), placed("blocks.0.attn.q", seed=1))


def test_they_are_neither_counted_nor_saved_nor_drawn_again_by_a_reset() -> None:
    structure = random()
    before = structure.frozen.B_aux.clone()
    structure.reset_parameters()
    assert torch.equal(structure.frozen.B_aux, before)
    assert structure.state_dict().keys() == {"B", "A"}
    assert sum(p.numel() for p in structure.parameters()) == 2 * (3 + 4)
    assert torch.equal(nn.Module.bfloat16(structure).frozen.B_aux, before)


def test_it_collapses_to_low_rank() -> None:
    structure = random()
    collapsed = structure.collapse()
    assert (collapsed.name, collapsed.options) == ("low_rank", {"rank": 2, "terms": 1})
    torch.testing.assert_close(collapsed.dense(), structure.dense())


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"outer=\[8, 4\] is not possible for a 9 x 7 matrix; give \[a, b\] with a"):
        random(outer=[8, 4])
    with pytest.raises(ValueError, match=r"outer=\[3\] is not possible; give two integers \[a, b\]"):
        random(outer=[3])
    with pytest.raises(ValueError, match="outer_seed=-1 is not possible; give an integer of at least 0"):
        random(outer_seed=-1)


@pytest.mark.parametrize(
    ("size", "matrices", "rank", "outer", "count"),
    [
        (768, 24, 1, [1, 1], 48),
        (768, 36, 8, [8, 8], 4_608),
        (768, 24, 8, [64, 64], 24_576),
        (768, 36, 8, [96, 96], 55_296),
        (768, 24, 8, [768, 768], 294_912),
        (768, 24, 8, None, 36_864),
        (384, 12, 8, None, 9_216),
        (384, 18, 8, None, 13_824),
        (384, 36, 8, None, 27_648),
    ],
)
def test_parameters(size: int, matrices: int, rank: int, outer: list[int] | None, count: int) -> None:
    """Of BERT-base with q, v or q, k, v; by default as many as LoRA with r = 1 has, on MiniLM and ViT-S too."""
    assert matrices * structure_class("lora_mini").num_parameters(size, size, rank=rank, outer=outer) == count
