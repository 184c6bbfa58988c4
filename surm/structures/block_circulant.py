"""Block-circulant matrices."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures import functional
from surm.structures.base import Fit, Shape
from surm.structures.family import Family
from surm.structures.options import count


class BlockCirculant(Family):
    """Leading m x n block of a grid of b x b circulants with first columns c_pq (C3A; Chen et al., arXiv 2407.19342).

    W[p b + i, q b + j] = c_pq[(i - j) mod b], with c = sum_t c_t; c (terms, ceil(m / b), ceil(n / b), b) starts at 0.
    `block_size` b is by default half of K = max(m, n), rounded up: 2 K parameters of a square matrix, as many as the
    paper's structures have; b = K is one circulant. C3A as PEFT has it takes first rows in place of first columns and
    only a b that divides m and n, and divides W by n.
    ceil(m / b) ceil(n / b) b parameters a term; O((m + n) log b + m n / b) a row.
    """

    name = "block_circulant"
    equation = "arXiv 2407.19342"
    option_rules: ClassVar = {"block_size": count(default=None), "terms": count()}

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        return resolved | {"block_size": resolved["block_size"] or (max(m, n) + 1) // 2}

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        b = options["block_size"]
        return {"c": (options["terms"], -(-m // b), -(-n // b), b)}

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        return [self._factors(dtype)[0].sum(dim=0)]

    def _product(self, x: Tensor) -> Tensor:
        [c] = self.generators(x.dtype)
        _, columns, b = c.shape
        blocks = pad(x, (0, columns * b - self.n)).reshape(*x.shape[:-1], columns, b)
        spectra = torch.einsum("...qf,pqf->...pf", torch.fft.rfft(blocks), torch.fft.rfft(c))
        y: Tensor = torch.fft.irfft(spectra, n=b).flatten(-2)[..., : self.m]
        return y

    @staticmethod
    def dense_form(generators: Sequence[Tensor], m: int, n: int) -> Tensor:
        [c] = generators
        b = c.shape[-1]
        blocks = functional.dense_toeplitz(functional.circulant_diagonals(c, b, b), b)
        return blocks.transpose(1, 2).flatten(2).flatten(0, 1)[:m, :n]

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """The mean over the entries of `matrix` where an entry of c stands; one that stands nowhere is zero."""
        [c] = self._factors()
        _, *adjoint = torch.func.vjp(lambda one: self.dense_form([one], self.m, self.n), torch.zeros_like(c[0]))
        (sums,), (counts,) = adjoint[0](matrix), adjoint[0](torch.ones_like(matrix))
        c.copy_(sums / counts.clamp(min=1) / len(c))
        return None
