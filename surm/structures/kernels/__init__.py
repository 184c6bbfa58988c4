"""What a linear layer with an update needs of a structured matrix D: D itself, and the gradients of its generators.

A *kernel* stands for one way to write D (m x n) by a few small tensors, its generators: mostly the parameters of a
structure themselves, so that what is made of them has no node of autograd. D takes O(m n) by views and adds.

Letters: m outputs, n inputs, K = max(m, n), T rows (tokens), r terms, P parts. The gradient of D itself is H = g^T x
(m, n) for the output's gradient g (T, m) and the input x (T, n); a generator's gradient is a sum over some of H's
entries. Most kernels have a way to it without H, which works on a few hundred rows at a time, so that its intermediates
stay in the cache; where products are cheap beside transforms, as in bfloat16, H is the better way.

Kernels work on P matrices of one kind at once, which share x, as those of queries, keys and values do: then g is
(T, P, m), and P is the first dimension of the tensors.
"""

from surm.structures.kernels import diagonals, displacement, factors
from surm.structures.kernels.kernel import Kernel

__all__ = ["KERNELS", "Kernel"]

KERNELS = {
    "toeplitz": diagonals.TOEPLITZ,
    "symmetric_toeplitz": diagonals.SYMMETRIC_TOEPLITZ,
    "circulant": diagonals.CIRCULANT,
    "skew_circulant": diagonals.SKEW_CIRCULANT,
    "ldr": displacement.LDR,
    "toeplitz_pair": displacement.TOEPLITZ_PAIR,
    "symmetric_toeplitz_pair": displacement.SYMMETRIC_TOEPLITZ_PAIR,
    "kronecker": factors.KRONECKER,
    "low_rank": factors.LOW_RANK,
}
