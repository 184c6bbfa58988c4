"""The way of updates in a graph that `torch.compile` makes for a GPU: plain torch, of which it writes few kernels.

D is read out of its generator by indices, and what is summed for a gradient is read out of H = g^T x, both fused with
what surrounds them. An operator that the compiler does not look into would call Python in every step, which takes as
long as the layer itself where layers are small.

Letters as in `surm.structures.ways`; K = max(m, n).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm.structures.ways import Group, Parts, Way

PAIRS = {
    "toeplitz_pair": ("toeplitz", "toeplitz"),
    "symmetric_toeplitz_pair": ("symmetric_toeplitz", "symmetric_toeplitz"),
    "ldr": ("circulant", "skew_circulant"),
}
SINGLE = ("circulant", "skew_circulant", "toeplitz", "symmetric_toeplitz")
WIDE_SIDE, SIDE = 512, 1024  # in float32 and half precision: larger matrices are for the operator and its kernels


def traces(kernel: str, m: int, n: int, dtype: torch.dtype) -> bool:
    """Whether this is the way of such matrices in a compiled graph, for rows of the dtype."""
    known = kernel in SINGLE or kernel in PAIRS or kernel == "kronecker"
    if dtype == torch.float32:
        return known and max(m, n) < WIDE_SIDE
    return known and max(m, n) <= SIDE and dtype in (torch.bfloat16, torch.float16)


class Traced(Way):
    """D by indices, and gradients from H."""

    def form(self, group: Group, tensors: Parts, n: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
        D = _dense(group.kernel, _stacked(tensors), group.m, n, dtype).flatten(0, 1)
        if weight is not None:
            return torch.add(weight, D, alpha=group.alpha).to(dtype)
        return (D * group.alpha).to(dtype)

    def backward(
        self, group: Group, tensors: Parts, g: Tensor, x: Tensor, dx: Tensor | None, fresh: bool, needs: bool
    ) -> list[Tensor]:
        if dx is not None:
            dx.addmm_(g, self.form(group, tensors, x.shape[1], None, g.dtype), beta=0 if fresh else 1)
        if not needs:
            return []
        H = (g.mT @ x).view(group.parts, group.m, x.shape[1])
        found = [group.alpha * of for of in _gradients(group.kernel, _stacked(tensors), H)]
        return [gradient for part in zip(*(of.unbind() for of in found), strict=True) for gradient in part]


def _stacked(tensors: Parts) -> list[Tensor]:
    """One tensor (P, r, ...) for each generator."""
    return [torch.stack(same) for same in zip(*tensors, strict=True)]


def _dense(kernel: str, tensors: Sequence[Tensor], m: int, n: int, dtype: torch.dtype) -> Tensor:
    """D (P, m, n); of a pair with factors in `dtype`."""
    if kernel in PAIRS:
        T1, T2 = _factors(kernel, tensors, m, n, dtype)
        return (T1 @ T2).sum(dim=1)
    if kernel == "kronecker":
        A, B = tensors
        return (A[..., :, None, :, None] * B[..., None, :, None, :]).flatten(-2).flatten(-3, -2).sum(dim=1)
    return _by_diagonals(kernel, _generator(tensors), m, n)


def _gradients(kernel: str, tensors: Sequence[Tensor], H: Tensor) -> list[Tensor]:
    """Of the tensors, from that of D (P, m, n)."""
    m, n = H.shape[-2:]
    if kernel in PAIRS:
        (one, two), (T1, T2), H = PAIRS[kernel], _factors(kernel, tensors, m, n, H.dtype), H.unsqueeze(1)
        return [
            _along_diagonals(one, H @ T2.mT, tensors[0].shape[-1]),
            _along_diagonals(two, T1.mT @ H, tensors[1].shape[-1]),
        ]
    if kernel == "kronecker":
        A, B = tensors
        blocks = H.to(A.dtype).view(len(H), A.shape[-2], B.shape[-2], A.shape[-1], B.shape[-1])
        return [torch.einsum("pikjl,ptkl->ptij", blocks, B), torch.einsum("pikjl,ptij->ptkl", blocks, A)]
    first, *second = tensors
    total = _along_diagonals(kernel, H, first.shape[-1]).unsqueeze(1)
    return [total * second[0], total * first] if second else [total.expand(first.shape)]


def _factors(kernel: str, tensors: Sequence[Tensor], m: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """T1 (P, r, m, K) and T2 (P, r, K, n)."""
    (one, two), (first, second), K = PAIRS[kernel], tensors, max(m, n)
    return _by_diagonals(one, first, m, K).to(dtype), _by_diagonals(two, second, K, n).to(dtype)


def _generator(tensors: Sequence[Tensor]) -> Tensor:
    """The sum over the terms: (P, size)."""
    first, *second = tensors
    return (first * second[0] if second else first).sum(dim=1)


def _by_diagonals(kernel: str, generator: Tensor, m: int, n: int) -> Tensor:
    """The matrix of a generator: (..., size) -> (..., m, n)."""
    d = torch.arange(m, device=generator.device).unsqueeze(1) - torch.arange(n, device=generator.device)
    size = generator.shape[-1]
    place = {"toeplitz": d + n - 1, "symmetric_toeplitz": d.abs()}.get(kernel, torch.where(d < 0, d + size, d))
    D = generator[..., place]
    return torch.where(d < 0, -D, D) if kernel == "skew_circulant" else D


def _along_diagonals(kernel: str, H: Tensor, size: int) -> Tensor:
    """The adjoint of `_by_diagonals`: (..., m, n) -> (..., size), in float32. Each sum runs over the rows i."""
    m, n = H.shape[-2:]
    i, k = torch.arange(m, device=H.device).unsqueeze(1), torch.arange(size, device=H.device)

    def read(j: Tensor, wanted: Tensor) -> Tensor:
        inside = wanted & (j >= 0) & (j < n)
        return torch.where(inside, H[..., i, j.clamp(0, n - 1)].float(), 0.0)

    always = k >= 0
    if kernel == "toeplitz":
        return read(i - k + n - 1, always).sum(dim=-2)
    if kernel == "symmetric_toeplitz":
        return (read(i - k, always) + read(i + k, k > 0)).sum(dim=-2)
    below, above = read(i - k, always), read(i - k + size, k > i)
    return (below - above if kernel == "skew_circulant" else below + above).sum(dim=-2)
