import numpy as np
import pytest
import torch

from surm.structures import build, structure_class


def test_the_worked_example() -> None:
    structure = build("block_low_rank", 4, 4, blocks=2, dtype=torch.float64)
    structure.load_state_dict(
        {"A": torch.tensor([[[1, 2]], [[3, 4]]]), "B": torch.tensor([[[1], [1]], [[1], [-1]]])}, strict=True
    )
    expected = [[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 3, 4], [0, 0, -3, -4]]
    assert structure.dense().tolist() == expected
    assert structure(torch.eye(4)).T.tolist() == expected
    assert torch.linalg.matrix_rank(structure.dense()) == 2


def test_every_block_has_a_rank_of_its_own() -> None:
    structure = build("block_low_rank", 12, 20, blocks=4, rank=2, dtype=torch.float64)
    structure.reset_parameters(False)
    W = structure.dense().detach().numpy()
    assert np.linalg.matrix_rank(W) == 8
    assert np.count_nonzero(W) == 4 * 3 * 5
    blocks = [W[3 * i : 3 * i + 3, 5 * i : 5 * i + 5] for i in range(4)]
    assert sum((block**2).sum() for block in blocks) == pytest.approx((W**2).sum())


def test_as_many_blocks_as_features_are_a_diagonal_and_one_is_low_rank() -> None:
    diagonal = build("block_low_rank", 6, 6, blocks=6, dtype=torch.float64)
    diagonal.reset_parameters(False)
    np.testing.assert_array_equal(
        diagonal.dense().detach(), np.diag(diagonal.B.flatten().detach() * diagonal.A.flatten().detach())
    )
    one, lora = (build(name, 6, 4, rank=2, dtype=torch.float64) for name in ("block_low_rank", "low_rank"))
    one = build("block_low_rank", 6, 4, rank=2, blocks=1, dtype=torch.float64)
    one.reset_parameters(False)
    lora.load_state_dict(one.state_dict())
    torch.testing.assert_close(one.dense(), lora.dense())


def test_the_nearest_member_leaves_the_least_of_each_block() -> None:
    matrix = torch.randn(8, 12, dtype=torch.float64)
    nearest = structure_class("block_low_rank").nearest(matrix, blocks=4)
    blocks = [matrix[2 * i : 2 * i + 2, 3 * i : 3 * i + 3].numpy() for i in range(4)]
    kept = sum(np.linalg.svd(block, compute_uv=False)[0] ** 2 for block in blocks)
    assert nearest.dense().square().sum().item() == pytest.approx(kept)
    assert (nearest.dense() - matrix).square().sum().item() == pytest.approx(matrix.square().sum().item() - kept)


def test_starts() -> None:
    """The authors' is LoRA's for each block: within sqrt(blocks / n), variance a third of its square."""
    torch.manual_seed(0)
    structure = build("block_low_rank", 384, 384, rank=4)
    assert structure.options["blocks"] == 8
    assert structure.A.std().item() == pytest.approx(0.5, rel=0.05)
    structure.reset_parameters("authors")
    assert structure.A.abs().max().item() == pytest.approx((8 / 384) ** 0.5, rel=0.01)
    assert structure.A.std().item() == pytest.approx((8 / 384 / 3) ** 0.5, rel=0.05)
    gradient_B, gradient_A = torch.autograd.grad(
        structure(torch.randn(5, 384)).square().sum() + structure.dense().sum(), [structure.B, structure.A]
    )
    assert gradient_B.any()
    assert not gradient_A.any()


@pytest.mark.parametrize("blocks", [2, 3, 5, 8])
def test_blocks_that_do_not_divide_are_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match=rf"blocks={blocks} does not divide both sizes of a 6 x 25 .* one of 1\.$"):
        build("block_low_rank", 6, 25, blocks=blocks)
    with pytest.raises(ValueError, match=r"give one of 1, 2, 4\.$"):
        build("block_low_rank", 8, 12, blocks=8)


@pytest.mark.parametrize("blocks", [1, 2, 8])
@pytest.mark.parametrize(
    ("size", "matrices", "count"),
    [(768, 24, 36_864), (768, 36, 55_296), (4096, 64, 524_288), (384, 12, 9_216), (384, 18, 13_824), (384, 36, 27_648)],
)
def test_parameters_of_published_settings(size: int, matrices: int, count: int, blocks: int) -> None:
    """Of RoBERTa-base (q, v), with k, Llama-2-7B (q, v), MiniLM (q, v), with k, ViT-S (q, k, v), all with rank 1."""
    assert matrices * structure_class("block_low_rank").num_parameters(size, size, blocks=blocks) == count
