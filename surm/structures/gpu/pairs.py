"""Products by pairs, sum_t T1_t T2_t with T1_t (m, K) and T2_t (K, n), by transforms of the rows: D is never formed.

Of the size of the tokens there is z = x T2_t^T (T, K), for one term at a time, and its gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm.structures.gpu.form import PAIRS
from surm.structures.gpu.transform import backward, convolve, spectrum


def pair_forward(kind: str, factors: Sequence[Tensor], x: Tensor, m: int, alpha: float, out: Tensor) -> None:
    """Add alpha x D^T to `out` (T, m): x (T, n); factors (r, size) of T1 and T2. Four launches a term."""
    (one, two), n = PAIRS[kind], x.shape[1]
    K = max(m, n)
    for first, second in _terms(factors):
        convolve(one, [first], convolve(two, [second], x, K, n), m, K, alpha, out)


def pair_backward(
    kind: str, factors: Sequence[Tensor], g: Tensor, x: Tensor, m: int, alpha: float, dx: Tensor | None
) -> list[Tensor]:
    """The gradients of both factors; alpha g D is added to dx (T, n), if that is given. Ten launches a term."""
    (one, two), n = PAIRS[kind], x.shape[1]
    K = max(m, n)
    found = []
    for first, second in _terms(factors):
        known = spectrum(two, [second], K, n)
        z, dz = convolve(two, [second], x, K, n, known=known), x.new_zeros(len(x), K)
        by_first = backward(one, [first], g, z, m, K, alpha, dz)
        found.append(by_first + backward(two, [second], dz, x, K, n, 1.0, dx, known))
    return found[0] if len(found) == 1 else [torch.cat(terms) for terms in zip(*found, strict=True)]


def _terms(factors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """The two factors (1, size) of each term."""
    if len(factors[0]) == 1:
        return [factors]
    return list(zip(*(factor.split(1) for factor in factors), strict=True))
