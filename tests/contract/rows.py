"""What the contract suite runs over: a new structure joins with one row.

The dense twins take their layout from SciPy's and NumPy's constructors and share no code with the structures: an index
matrix says which entry of a generator stands where, so that autograd goes through them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def circulant(c: Tensor, m: int, n: int) -> Tensor:
    return c[torch.from_numpy(scipy.linalg.circulant(np.arange(len(c))))][:m, :n]


def skew_circulant(c: Tensor, m: int, n: int) -> Tensor:
    wraps = np.triu(np.ones((len(c), len(c))), k=1)
    return circulant(c, m, n) * torch.from_numpy(1 - 2 * wraps)[:m, :n]


def toeplitz(d: Tensor, m: int, n: int) -> Tensor:
    return d[torch.from_numpy(scipy.linalg.toeplitz(np.arange(n - 1, m + n - 1), np.arange(n - 1, -1, -1)))]


def symmetric_toeplitz(t: Tensor, m: int, n: int) -> Tensor:
    return t[torch.from_numpy(scipy.linalg.toeplitz(np.arange(len(t))))][:m, :n]


def sum_over_terms(term: Callable[..., Tensor], *names: str) -> Callable[[Parameters, int, int], Tensor]:
    """The twin that adds term(generators of the term, m, n) over the leading dimension of the parameters."""

    def twin(p: Parameters, m: int, n: int) -> Tensor:
        return torch.stack([term(*factors, m, n) for factors in zip(*(p[name] for name in names), strict=True)]).sum(0)

    return twin


def pair(factor: Callable[[Tensor, int, int], Tensor]) -> Callable[[Tensor, Tensor, int, int], Tensor]:
    return lambda t1, t2, m, n: factor(t1, m, max(m, n)) @ factor(t2, max(m, n), n)


def ldr(g: Tensor, h: Tensor, m: int, n: int) -> Tensor:
    return (circulant(g, len(g), len(g)) @ skew_circulant(h, len(h), len(h)))[:m, :n]


def block_circulant(b: Callable[[int, int], int]) -> Callable[[Tensor, int, int], Tensor]:
    """Of b(m, n) x b(m, n) blocks, whose first columns stand one after the other in a generator of any shape."""

    def dense(c: Tensor, m: int, n: int) -> Tensor:
        size = b(m, n)
        grid = np.arange(-(-m // size) * -(-n // size)).reshape(-(-m // size), -(-n // size)) * size
        block = scipy.linalg.circulant(np.arange(size))
        layout = np.block([[start + block for start in line] for line in grid])[:m, :n]
        return c.flatten()[torch.from_numpy(layout)]

    return dense


def grid_size(b: Callable[[int, int], int]) -> Callable[[int, int], int]:
    return lambda m, n: -(-m // b(m, n)) * -(-n // b(m, n)) * b(m, n)


def diagonal(d: Tensor, m: int, n: int) -> Tensor:
    """Each entry on np.eye's diagonal, next to zeros."""
    layout = np.eye(m, n, dtype=int) * (1 + np.arange(n))
    return torch.cat((d.new_zeros(1), d))[torch.from_numpy(layout)]


def half(m: int, n: int) -> int:
    return -(-max(m, n) // 2)


def two(m: int, n: int) -> int:
    return 2


def block_diagonal(blocks: Tensor) -> Tensor:
    """Of blocks (k, rows, columns)."""
    numbers = 1 + np.arange(blocks.numel()).reshape(blocks.shape)
    layout = torch.from_numpy(scipy.linalg.block_diag(*numbers))
    return torch.cat((blocks.new_zeros(1), blocks.flatten()))[layout]


def transposition(rows: int, columns: int) -> Tensor:
    """Which entry of a flat (rows, columns) matrix stands where in its flat transpose."""
    return torch.from_numpy(np.arange(rows * columns).reshape(rows, columns).T.ravel())


def monarch(L: Tensor, R: Tensor, m: int, n: int) -> Tensor:
    """P L P^T R, with permutations of rows that turn blocks x rows into rows x blocks."""
    k, s, _ = L.shape
    inner = block_diagonal(R)[transposition(k, k)]
    return (block_diagonal(L) @ inner)[transposition(k, s)][:m, :n]


def monarch_size(m: int, n: int) -> int:
    """With the least padded number of blocks between sqrt(N / 2) and sqrt(2 N), N = min(m, n)."""
    N = min(m, n)
    chosen = [k for k in range(1, N + 1) if N / 2 <= k**2 <= 2 * N]
    k = min(chosen, key=lambda k: (np.ceil(m / k) * np.ceil(n / k) * k**2, abs(k**2 - N)))
    return int(k**2 * (np.ceil(m / k) + np.ceil(n / k)))


def block_low_rank(p: Parameters, m: int, n: int) -> Tensor:
    return block_diagonal(torch.stack([B @ A for B, A in zip(p["B"], p["A"], strict=True)]))


def orthonormal(gaussian: Tensor) -> Tensor:
    """Q of the QR decomposition by NumPy in which R has a positive diagonal."""
    Q, R = np.linalg.qr(gaussian.double().numpy())
    return torch.from_numpy((Q * np.sign(np.diag(R))).astype(np.float32)).double()


def lora_mini(p: Parameters, m: int, n: int) -> Tensor:
    """B_aux B A A_aux with the outer factors of seed 0, drawn as documented."""
    generator, (b, _), (_, a) = torch.Generator().manual_seed(0), p["B"].shape, p["A"].shape
    B_aux = orthonormal(torch.randn(m, b, generator=generator))
    return B_aux @ p["B"] @ p["A"] @ orthonormal(torch.randn(a, n, generator=generator).T).T


def base_weight(m: int, n: int) -> Tensor:
    """What structures that need one are attached to."""
    return torch.from_numpy(np.random.default_rng(100 * m + n).standard_normal((m, n)))


def lora_xs(p: Parameters, m: int, n: int) -> Tensor:
    U, S, Vh = np.linalg.svd(base_weight(m, n).numpy(), full_matrices=False)
    signs = np.sign([column[np.abs(column).argmax()] for column in U.T])
    B, A = torch.from_numpy(U * signs), torch.from_numpy((signs * S)[:, None] * Vh)
    return B[:, : len(p["R"])] @ p["R"] @ A[: len(p["R"])]


def gated_low_rank(p: Parameters, m: int, n: int) -> Tensor:
    """The sum of its components, one by one."""
    return sum((c * torch.outer(b, a) for c, b, a in zip(p["c"], p["B"].T, p["A"], strict=True)), torch.zeros(m, n))


def gated_chain(p: Parameters, m: int, n: int) -> Tensor:
    return p["U"] @ p["P"] @ torch.diag(p["c"]) @ p["Q"] @ p["V"]


def circulant_plus_skew(p: Parameters, m: int, n: int) -> Tensor:
    return circulant((p["parts.0.r1"] * p["parts.0.r2"])[0], m, n) + skew_circulant(
        (p["parts.1.r1"] * p["parts.1.r2"])[0], m, n
    )


def circulant_plus_toeplitz(p: Parameters, m: int, n: int) -> Tensor:
    return circulant((p["parts.0.r1"] * p["parts.0.r2"])[0], m, n) + symmetric_toeplitz(p["parts.1.t"][0], m, n)


def circulant_plus_low_rank(p: Parameters, m: int, n: int) -> Tensor:
    return circulant((p["parts.0.r1"] * p["parts.0.r2"])[0], m, n) + p["parts.1.B"][0] @ p["parts.1.A"][0]


@dataclass(frozen=True)
class Row:
    name: str
    options: dict[str, Any]
    twin: Callable[[Parameters, int, int], Tensor]  # parameters, m, n -> dense matrix
    count: Callable[[int, int], int]  # m, n -> number of parameters, as the project's table of structures has it
    basis: tuple[Callable[[Tensor, int, int], Tensor], ...] = ()  # generators of linear families
    generator_size: Callable[[int, int], int] = field(default=max)
    exact: bool = True  # whether `nearest` is a closed form

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def general_size(m: int, n: int) -> int:
    return m + n - 1


def fewest_kronecker(m: int, n: int) -> int:
    """By trial of every factor shape."""
    return min(
        m1 * n1 + (m // m1) * (n // n1)
        for m1 in range(1, m + 1)
        for n1 in range(1, n + 1)
        if m % m1 == 0 and n % n1 == 0
    )


PRODUCT = {"parametrization": "product"}
DIRECT = {"parametrization": "direct"}
GENERAL = {"symmetric": False}
ONE = {"factors": 1}

circulant_pair = sum_over_terms(lambda a, b, m, n: circulant(a * b, m, n), "r1", "r2")
skew_pair = sum_over_terms(lambda a, b, m, n: skew_circulant(a * b, m, n), "r1", "r2")
kronecker = sum_over_terms(lambda A, B, m, n: torch.kron(A, B), "A", "B")
low_rank = sum_over_terms(lambda B, A, m, n: B @ A, "B", "A")

ROWS = [
    Row("circulant", PRODUCT, circulant_pair, lambda m, n: 2 * max(m, n), (circulant,)),
    Row("circulant", PRODUCT | {"terms": 3}, circulant_pair, lambda m, n: 6 * max(m, n), (circulant,)),
    Row("circulant", DIRECT, sum_over_terms(circulant, "c"), lambda m, n: max(m, n), (circulant,)),
    Row("skew_circulant", PRODUCT, skew_pair, lambda m, n: 2 * max(m, n), (skew_circulant,)),
    Row(
        "skew_circulant",
        DIRECT | {"terms": 2},
        sum_over_terms(skew_circulant, "c"),
        lambda m, n: 2 * max(m, n),
        (skew_circulant,),
    ),
    Row("toeplitz", {}, sum_over_terms(pair(symmetric_toeplitz), "t1", "t2"), lambda m, n: 2 * max(m, n), exact=False),
    Row(
        "toeplitz",
        {"terms": 2},
        sum_over_terms(pair(symmetric_toeplitz), "t1", "t2"),
        lambda m, n: 4 * max(m, n),
        exact=False,
    ),
    Row(
        "toeplitz",
        GENERAL,
        sum_over_terms(pair(toeplitz), "t1", "t2"),
        lambda m, n: m + n + 2 * max(m, n) - 2,
        exact=False,
    ),
    Row("toeplitz", ONE, sum_over_terms(symmetric_toeplitz, "t"), lambda m, n: max(m, n), (symmetric_toeplitz,)),
    Row(
        "toeplitz",
        GENERAL | ONE | {"terms": 2},
        sum_over_terms(toeplitz, "t"),
        lambda m, n: 2 * (m + n - 1),
        (toeplitz,),
        general_size,
    ),
    Row("kronecker", {}, kronecker, fewest_kronecker),
    Row("kronecker", {"terms": 2}, kronecker, lambda m, n: 2 * fewest_kronecker(m, n)),
    Row("ldr", {}, sum_over_terms(ldr, "G", "H"), lambda m, n: 2 * max(m, n), exact=False),
    Row("ldr", {"terms": 3}, sum_over_terms(ldr, "G", "H"), lambda m, n: 6 * max(m, n), exact=False),
    Row("low_rank", {}, low_rank, lambda m, n: m + n),
    Row("low_rank", {"rank": 2, "terms": 2}, low_rank, lambda m, n: 4 * (m + n)),
    Row(
        "block_circulant",
        {},
        sum_over_terms(block_circulant(half), "c"),
        grid_size(half),
        (block_circulant(half),),
        grid_size(half),
    ),
    Row(
        "block_circulant",
        {"block_size": 2, "terms": 2},
        sum_over_terms(block_circulant(two), "c"),
        lambda m, n: 2 * grid_size(two)(m, n),
        (block_circulant(two),),
        grid_size(two),
    ),
    Row("monarch", {}, sum_over_terms(monarch, "L", "R"), monarch_size),
    Row(
        "monarch",
        {"blocks": 3, "terms": 2},
        sum_over_terms(monarch, "L", "R"),
        lambda m, n: 2 * 9 * (-(-m // 3) + -(-n // 3)),
    ),
    Row("block_low_rank", {"rank": 2}, block_low_rank, lambda m, n: 2 * (m + n)),
    Row("lora_mini", {"rank": 2}, lora_mini, lambda m, n: 2 * ((m + 1) // 2 + (n + 1) // 2)),
    Row("lora_xs", {}, lora_xs, lambda m, n: min(int(np.sqrt(m + n)), m, n) ** 2),
    Row("gated_low_rank", {"rank": 3}, gated_low_rank, lambda m, n: 3 * (m + n + 1)),
    Row("gated_chain", {"rank": 3, "outer_rank": 2}, gated_chain, lambda m, n: 2 * (m + n + 6) + 3),
    Row("gated_chain", {"rank": 2, "outer_rank": 3}, gated_chain, lambda m, n: 3 * (m + n + 4) + 2),
    Row("diagonal", {}, lambda p, m, n: diagonal(p["d"], m, n), min, (diagonal,), min),
    Row("circulant+skew_circulant", {}, circulant_plus_skew, lambda m, n: 4 * max(m, n), (circulant, skew_circulant)),
    Row(
        "circulant+toeplitz", ONE, circulant_plus_toeplitz, lambda m, n: 3 * max(m, n), (circulant, symmetric_toeplitz)
    ),
    Row("circulant+low_rank", {}, circulant_plus_low_rank, lambda m, n: 2 * max(m, n) + m + n, exact=False),
]
