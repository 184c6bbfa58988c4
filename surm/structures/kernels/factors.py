"""Kronecker products and products of low rank: one factor shrinks g or x before they meet."""

import torch
from torch import Tensor

from surm.structures.functional import dense_kronecker
from surm.structures.kernels.kernel import Kernel, Tensors, chunks
from surm.structures.kernels.shifts import outer

# sum_t A_t kron B_t with A (P, r, m1, n1), B (P, r, m2, n2).


def _kronecker_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    return dense_kronecker(*tensors)


def _kronecker_by_rows(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    A, B = tensors
    (parts, r, m1, n1), (_, _, m2, n2) = A.shape, B.shape
    A_gradient, B_gradient = torch.zeros_like(A), torch.zeros_like(B)
    for g_rows, x_rows in chunks(A, parts * m1 * m2 + n1 * n2, g, x):
        X = x_rows.reshape(-1, n1, n2)
        for part in range(parts):
            G = g_rows[:, part].reshape(-1, m1, m2)
            for t in range(r):
                A_gradient[part, t] += _left_gradient(G, X, B[part, t])
                B_gradient[part, t] += _right_gradient(G, X, A[part, t])
    return [A_gradient, B_gradient]


def _kronecker_by_outer(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    A, B = tensors
    (_, _, m1, n1), (_, _, m2, n2) = A.shape, B.shape
    H = outer(g, x, A)[:, : m1 * m2].reshape(-1, m1, m2, n1, n2)
    return [torch.einsum("pikjl,ptkl->ptij", H, B), torch.einsum("pikjl,ptij->ptkl", H, A)]


def _left_gradient(G: Tensor, X: Tensor, B: Tensor) -> Tensor:
    """Of A: sum over rows of G (m1, m2) times B X^T, X (n1, n2)."""
    shrunk = (X.flatten(0, 1) @ B.mT).view(*X.shape[:2], len(B))
    return torch.bmm(G, shrunk.mT).sum(dim=0)


def _right_gradient(G: Tensor, X: Tensor, A: Tensor) -> Tensor:
    """Of B: sum over rows of G^T A X."""
    count, n1, n2 = X.shape
    turned = A.mT @ G
    # In n1 products of equal length, as one of this shape would run on one core; not views, as the input of a layer and
    # its output's gradient may be transposed or expanded.
    return torch.bmm(turned.reshape(n1, count, G.shape[-1]).mT, X.reshape(n1, count, n2)).sum(dim=0)


# sum_t B_t A_t with B (P, r, m, rank) and A (P, r, rank, n), or without the dimension of the terms.


def _columns(tensors: Tensors) -> list[Tensor]:
    """B (P, m, r rank) and A (P, r rank, n) with the terms side by side."""
    B, A = tensors
    return [B.transpose(1, 2).flatten(2), A.flatten(1, 2)] if B.dim() == 4 else [B, A]


def _low_rank_dense(tensors: Tensors, m: int, n: int) -> Tensor:
    B, A = _columns(tensors)
    return B @ A


def _low_rank_by_rows(tensors: Tensors, g: Tensor, x: Tensor) -> list[Tensor]:
    B, A = _columns(tensors)
    B_gradient, A_gradient = torch.zeros_like(B), torch.zeros_like(A)
    for g_rows, x_rows in chunks(B, g.shape[1] * g.shape[2] + x.shape[-1], g, x):
        for part, own in enumerate(g_rows.unbind(1)):
            B_gradient[part].addmm_(own.mT, x_rows @ A[part].mT)
            A_gradient[part].addmm_((own @ B[part]).mT, x_rows)
    if tensors[0].dim() == 4:
        parts, terms, m, rank = tensors[0].shape
        B_gradient = B_gradient.view(parts, m, terms, rank).transpose(1, 2).contiguous()
        A_gradient = A_gradient.view(tensors[1].shape)
    return [B_gradient, A_gradient]


KRONECKER = Kernel(_kronecker_dense, _kronecker_by_rows, _kronecker_by_outer)
LOW_RANK = Kernel(_low_rank_dense, _low_rank_by_rows, outer_pays=False)  # H has m n entries where g and x are narrowed
