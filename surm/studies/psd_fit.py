"""Positive semidefinite matrices fitted at an equal budget of parameters (paper section 4.2, Fig. 1 left)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surm.structures import structure_class

SIZE = 50  # the paper's n; also its budget of parameters
FACTOR_SHAPE = (10, 5)  # of A in A kron A^T


@dataclass
class PsdFitOptions:
    """Every matrix is drawn `draws` times."""

    name: str = "psd_fit"
    draws: int = 10
    low_rank: int = 5  # of the low-rank target


def validate(options: PsdFitOptions) -> None:
    """Refuse impossible options.

    Raises:
        ValueError: one sentence with the value and what is allowed.
    """
    if options.draws < 1:
        raise ValueError(f"study.draws={options.draws}: give a whole number of at least 1.")
    if not 1 <= options.low_rank < SIZE:
        raise ValueError(f"study.low_rank={options.low_rank}: give a whole number from 1 to {SIZE - 1}.")


def parts(options: PsdFitOptions) -> list[dict[str, Any]]:
    """One part for each draw."""
    return [{"draw": draw, "low_rank": options.low_rank} for draw in range(options.draws)]


def compute(part: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Errors ||M - fit||, in Frobenius norm and not relative, of every fit to every target of one draw."""
    generator = torch.Generator().manual_seed(part["draw"])
    full_rank, low_rank = (
        torch.randn(SIZE, columns, generator=generator, dtype=torch.float64) for columns in (SIZE, part["low_rank"])
    )
    rows = []
    for normalised in ("after", "before"):
        psd = gram(full_rank, normalised=normalised)
        targets = {
            "psd": psd,
            "no_diagonal": psd - psd.diag().diag(),
            "low_rank": gram(low_rank, normalised=normalised),
        }
        for target, matrix in targets.items():
            where = {"target": target, "normalised": normalised}
            rows += [
                where | {"fit": fit, "parameters": parameters, "error": (matrix - near).norm().item()}
                for fit, (parameters, near) in fits(matrix).items()
            ]
    say(f"draw {part['draw']}: {len(rows)} fits")
    return {"rows": rows}


def gram(G: Tensor, *, normalised: str) -> Tensor:
    """G G^T with rows of unit length: those of the product ("after": not symmetric any more) or of G ("before")."""
    if normalised == "before":
        G = torch.nn.functional.normalize(G)
    product = G @ G.T
    return torch.nn.functional.normalize(product) if normalised == "after" else product


def fits(matrix: Tensor) -> dict[str, tuple[int, Tensor]]:
    """The number of parameters and the nearest matrix of every family to an n x n one; all of them exact."""
    n = len(matrix)
    return {
        "zero": (0, torch.zeros_like(matrix)),
        "identity": (1, matrix.diag().mean() * torch.eye(n, dtype=matrix.dtype)),
        "rank_one": (n, nearest_rank_one(matrix)),
        "kronecker_tied": (FACTOR_SHAPE[0] * FACTOR_SHAPE[1], nearest_tied_kronecker(matrix, FACTOR_SHAPE)),
        "kronecker_free": _nearest(matrix, "kronecker", factor_shape=list(FACTOR_SHAPE)),
        "circulant": _nearest(matrix, "circulant", parametrization="direct"),
        "toeplitz": _nearest(matrix, "toeplitz", symmetric=True, factors=1),
    }


def nearest_rank_one(matrix: Tensor) -> Tensor:
    """The nearest v v^T: the top eigenpair of the symmetric part, and zero where no eigenvalue is positive.

    The part of the matrix that is not symmetric is orthogonal to every v v^T.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    v = eigenvalues[-1].clamp(min=0).sqrt() * eigenvectors[:, -1]
    return torch.outer(v, v)


def nearest_tied_kronecker(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """The nearest A kron A^T to an n x n matrix, A of shape (p, q) with p q = n.

    A kron A^T holds A[i, j] A[l, k] in row (i, k) and column (j, l). Van Loan and Pitsianis (1993) rearrange it into
    vec A (vec A^T)^T; with the second index pair exchanged that is vec A (vec A)^T, a case of `nearest_rank_one`.
    """
    p, q = shape
    rearranged = matrix.reshape(p, q, q, p).permute(0, 2, 3, 1)  # (i, k, j, l) -> (i, j, l, k)
    near = nearest_rank_one(rearranged.reshape(p * q, p * q))
    return near.reshape(p, q, p, q).permute(0, 3, 1, 2).reshape(p * q, p * q)


def _nearest(matrix: Tensor, name: str, **options: Any) -> tuple[int, Tensor]:
    family = structure_class(name)
    parameters = family.num_parameters(*matrix.shape, **options)
    return parameters, family.nearest(matrix, **options).dense().detach()
