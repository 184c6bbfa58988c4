"""Rows that are read shifted, and what is summed along diagonals by them."""

from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 16  # rows: longer blocks cost the displacement more multiplications, shorter ones leave more rows above blocks


def shifted(v: Tensor, n: int) -> Tensor:
    """v (..., n + b - 1) moved to the right by 0 ... b - 1: (..., b, n), with entry (s, j) = v[j - s + b - 1]."""
    return v.unfold(-1, n, 1).flip(-2)


def with_room(lead: tuple[int, ...], n: int, like: Tensor) -> Tensor:
    """Zeros (*lead, n), whose rows stand BLOCK zeros apart in memory, so that they can be read shifted."""
    stored = like.new_zeros(prod(lead) * (BLOCK + n) + BLOCK)
    return stored[:-BLOCK].view(*lead, BLOCK + n)[..., BLOCK:]


def shifted_gradient(g: Tensor) -> Tensor:
    """The adjoint of `shifted`: g (..., b, n), made by `with_room`, -> (..., n + b - 1)."""
    *lead, b, n = g.shape
    *strides, width, _ = g.stride()
    back = g.as_strided((*lead, b, n + b - 1), (*strides, width + 1, 1), g.storage_offset() + 1 - b)
    return back.sum(dim=-2)


def in_blocks(v: Tensor) -> Tensor:
    """(..., m) -> (..., blocks, BLOCK), with zeros behind the m-th."""
    return pad(v, (0, -v.shape[-1] % BLOCK)).reshape(*v.shape[:-1], -1, BLOCK)


def above_blocks(parts: int, blocks: int, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the rows above blocks, with BLOCK entries to the left of D: as (P, blocks, BLOCK + n), and in memory.

    In memory (P, blocks, width) each row begins BLOCK further to the left than the one before it, so that diagonals are
    columns there.
    """
    skewed = like.new_zeros(parts, blocks, n + blocks * BLOCK)
    return straight(skewed, n), skewed


def straight(skewed: Tensor, n: int) -> Tensor:
    """What `above_blocks` gives, of its room in memory."""
    parts, blocks, width = skewed.shape
    strides = (blocks * width, width - BLOCK, 1)
    return skewed.as_strided((parts, blocks, BLOCK + n), strides, (blocks - 1) * BLOCK)


def outer(g: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """H = g^T x in the dtype of `like`: g (T, P, m), x (T, n) -> (P, m and zeros up to whole blocks, n), with room."""
    _, parts, m = g.shape
    n = x.shape[-1]
    rows = -(-m // BLOCK) * BLOCK
    H = with_room((parts, rows), n, like)
    for part in range(parts):
        if g.dtype == H.dtype:
            torch.mm(g[:, part].mT, x, out=H[part, :m])
        else:
            H[part, :m] = g[:, part].mT @ x
    return H


def block_sums(H: Tensor) -> Tensor:
    """The sums of H, as `outer` makes it, along diagonals within blocks, in the memory of `above_blocks`."""
    parts, rows, n = H.shape
    above, skewed = above_blocks(parts, rows // BLOCK, n, H)
    above[..., :-1] = shifted_gradient(H.view(parts, -1, BLOCK, n))
    return skewed


def diagonal_sums(H: Tensor, m: int) -> Tensor:
    """The sums along whole diagonals, from the upper right corner to the lower left: (P, m + n - 1)."""
    return block_sums(H).sum(dim=1).flip(-1)[:, 1 : m + H.shape[-1]]
