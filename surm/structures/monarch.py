"""Monarch matrices."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures.base import Fit, Shape
from surm.structures.family import Family
from surm.structures.options import count


def best_blocks(m: int, n: int) -> int:
    """k within a factor sqrt(2) of sqrt(min(m, n)): with the least padding, then the nearest, then the smaller one."""
    size = min(m, n)

    def preference(k: int) -> tuple[int, int]:
        return -(-m // k) * -(-n // k) * k * k, abs(k * k - size)

    return min((k for k in range(1, size + 1) if size <= 2 * k * k <= 4 * size), key=preference)


class Monarch(Family):
    """Two block-diagonal factors and fixed permutations, sum_t P L_t P^T R_t (Dao et al. 2022, arXiv 2204.00595).

    Leading m x n block of the matrix with entries W[a k + i, j p + c] = sum_t L_t[i, a, j] R_t[j, i, c], each factor of
    k = `blocks` blocks: L (terms, k, s, k) with s = ceil(m / k) starts at zero, R (terms, k, k, p) with p = ceil(n / k)
    ~ N(0, 1 / terms); authors: within 1 / sqrt(p), uniform. So the entries of one i and j are a block of rank `terms`,
    while W may have any rank. With k = s = p = sqrt(n) and one term these are the paper's square matrices.
    k^2 (s + p) parameters a term, about k (m + n); as many multiplications a row.
    """

    name = "monarch"
    equation = "arXiv 2204.00595"
    option_rules: ClassVar = {"blocks": count(default=None), "terms": count()}

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        return resolved | {"blocks": resolved["blocks"] or best_blocks(m, n)}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        k, terms = options["blocks"], options["terms"]
        return {"L": (terms, k, -(-m // k), k), "R": (terms, k, k, -(-n // k))}

    def _product(self, x: Tensor) -> Tensor:
        L, R = self._factors(x.dtype)
        _, k, _, p = R.shape
        blocks = pad(x, (0, k * p - self.n)).reshape(*x.shape[:-1], k, p)
        middle = torch.einsum("...jc,tjic->...jti", blocks, R)
        return torch.einsum("...jti,tiaj->...ai", middle, L).flatten(-2)[..., : self.m]

    @staticmethod
    def dense_form(generators: Sequence[Tensor], m: int, n: int) -> Tensor:
        L, R = generators
        return torch.einsum("tiaj,tjic->aijc", L, R).flatten(2).flatten(0, 1)[:m, :n]

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """The nearest blocks of rank `terms`, each by its own singular value decomposition.

        Exact at every size: what the leading block leaves out are whole rows and columns of blocks, whose factors are
        zero there. More terms than a block has singular values stay zero.
        """
        L, R = self._factors()
        terms, k, s, _ = L.shape
        padded = pad(matrix, (0, k * R.shape[-1] - self.n, 0, k * s - self.m))
        U, S, Vh = torch.linalg.svd(padded.view(s, k, k, -1).permute(1, 2, 0, 3), full_matrices=False)  # [i, j]
        rank = min(terms, S.shape[-1])
        root = S[..., :rank].sqrt()
        L.zero_()[:rank] = (U[..., :rank] * root.unsqueeze(-2)).permute(3, 0, 2, 1)
        R.zero_()[:rank] = (Vh[..., :rank, :] * root.unsqueeze(-1)).permute(2, 1, 0, 3)
        return None
