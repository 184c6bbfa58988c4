"""Classes of matrices fitted by circulant, Toeplitz and W(G, H) matrices (paper section 4.1, appendix A.7, Fig. 5)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surm.structures import structure_class
from surm.structures.base import Fit
from surm.structures.projection import DisplacementProblem, truncated_svd

SIZE = 100


@dataclass
class LdrFitOptions:
    """Every target is drawn `draws` times and fitted with each number of terms."""

    name: str = "ldr_fit"
    draws: int = 10
    terms: list[int] = field(default_factory=lambda: list(range(1, 21)))
    cold_starts: int = 2
    tolerance: float = 1e-5  # relative change of the error over 25 sweeps at which alternating least squares stops
    descent_steps: list[int] = field(default_factory=lambda: [200, 1000])  # of Adam, where its error is looked at
    descent_rate: float = 0.1  # the paper's; it does not state the number of steps
    descent_starts: int = 1  # random ones, for each number of terms
    near_rank: int = 5  # of G H^T in near_low_rank; not stated in the paper
    near_ranks: list[int] = field(default_factory=list)  # several of them, each a target, in place of near_rank
    noise: float = 0.05  # eps of low_intrinsic_rank_noise; not stated in the paper


def validate(options: LdrFitOptions) -> None:
    """Refuse impossible options.

    Raises:
        ValueError: one sentence with the value and what is allowed.
    """
    for name in ("draws", "cold_starts", "descent_starts", "near_rank"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"study.{name}={value}: give a whole number of at least 1.")
    for name in ("tolerance", "descent_rate", "noise"):
        if not 0 < (value := getattr(options, name)) < float("inf"):
            raise ValueError(f"study.{name}={value}: give a finite number above 0.")
    for name, highest in (("terms", SIZE), ("descent_steps", 1_000_000), ("near_ranks", SIZE)):
        values = list(getattr(options, name))
        if name == "near_ranks" and not values:
            continue
        if not values or values != sorted(set(values)) or not 1 <= values[0] <= values[-1] <= highest:
            raise ValueError(f"study.{name}={values}: give increasing whole numbers from 1 to {highest}.")


def parts(options: LdrFitOptions) -> list[dict[str, Any]]:
    """One part for each target and draw: a warm start needs the fit with fewer terms."""
    shared: dict[str, Any] = {
        "terms": list(options.terms),
        "cold_starts": options.cold_starts,
        "tolerance": options.tolerance,
        "descent_steps": list(options.descent_steps),
        "descent_rate": options.descent_rate,
    }
    if options.descent_starts > 1:  # parts from before this setting do not have it
        shared["descent_starts"] = options.descent_starts
    near: dict[str, dict[str, Any]] = {f"near_low_rank_{rank}": {"near_rank": rank} for rank in options.near_ranks}
    own: dict[str, dict[str, Any]] = {
        "random": {},
        **(near or {"near_low_rank": {"near_rank": options.near_rank}}),
        "low_intrinsic_rank": {},
        "low_intrinsic_rank_noise": {"noise": options.noise},
    }
    return [
        {"target": target, "draw": draw, **shared, **settings}
        for target, settings in own.items()
        for draw in range(options.draws)
    ]


def compute(part: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Relative Frobenius error of every fit to one matrix, and what the optimisers spent."""
    matrix = draw_target(part, generator=torch.Generator().manual_seed(part["draw"]))
    rows = [*exact_fits(matrix, part["terms"]), *displacement_fits(matrix, part, say)]
    return {"rows": [{"target": part["target"], **row} for row in rows]}


def draw_target(part: dict[str, Any], *, generator: torch.Generator) -> Tensor:
    """A matrix of one of the classes of appendix A.7, (SIZE, SIZE) in float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if part["target"] == "random":
        return normal(SIZE, SIZE)
    if "near_rank" in part:
        rank = part["near_rank"]
        return normal(SIZE, rank) @ normal(rank, SIZE) + 0.05 * normal(SIZE, SIZE)
    # Row i is (sin t_i, sin 2 t_i, ..., sin n t_i).
    matrix = torch.sin(normal(SIZE, 1) * torch.arange(1, SIZE + 1))
    return matrix + part["noise"] * normal(SIZE, SIZE) if "noise" in part else matrix


def exact_fits(matrix: Tensor, terms: list[int]) -> list[dict[str, Any]]:
    """Fits that need no optimiser; the SVD is cut to the parameters of W(G, H) with as many terms."""
    families: dict[str, tuple[str, dict[str, Any]]] = {
        "circulant": ("circulant", {"parametrization": "direct"}),
        "toeplitz_symmetric": ("toeplitz", {"symmetric": True, "factors": 1}),
        "toeplitz": ("toeplitz", {"symmetric": False, "factors": 1}),
    }
    rows = []
    for fit, (name, options) in families.items():
        family = structure_class(name)
        parameters = family.num_parameters(*matrix.shape, **options)
        error = _relative_error(matrix, family.nearest(matrix, **options).dense().detach())
        rows.append({"fit": fit, "parameters": parameters, "error": error})
    for rank in terms:
        left, right = truncated_svd(matrix, rank)
        error = _relative_error(matrix, left @ right)
        rows.append({"fit": "svd", "terms": rank, "parameters": rank * sum(matrix.shape), "error": error})
    return rows


def displacement_fits(matrix: Tensor, part: dict[str, Any], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Fits by W(G, H): alternating least squares from random H and from the fit with fewer terms, and descent."""
    problem = DisplacementProblem(matrix)
    rows: list[dict[str, Any]] = []
    warm: Tensor | None = None
    for terms in part["terms"]:
        shared = {"terms": terms, "parameters": 2 * terms * SIZE}
        generator = torch.Generator().manual_seed(1000 * (1 + part["draw"]) + terms)
        starts = [_normal(terms, generator) for _ in range(part["cold_starts"])]
        colds = [problem.alternate(start, tolerance=part["tolerance"]) for start in starts]
        rows += [{"fit": "cold", **shared, "start": start, **_outcome(fit)} for start, (*_, fit) in enumerate(colds)]
        if warm is None:  # nothing has fewer terms: the best cold fit begins
            _, warm, _ = min(colds, key=lambda found: found[-1].relative_error)
        # Finding G for the old and the new columns of H together can only lower the error of the old ones.
        start = torch.cat([warm, _normal(terms - warm.shape[1], generator)], dim=1)
        _, warm, fit = problem.alternate(start, tolerance=part["tolerance"])
        rows.append({"fit": "warm", **shared, **_outcome(fit)})
        for number in range(part.get("descent_starts", 1)):
            # The first goes on from the first cold start's H.
            G, H = _normal(terms, generator), starts[0] if number == 0 else _normal(terms, generator)
            for steps, error in descend(problem, G, H, part).items():
                rows.append({"fit": "descent", **shared, "error": error, "steps": steps})
        say(f"{part['target']}, draw {part['draw']}, {terms} terms: relative error {fit.relative_error:.4f}")
    return rows


def descend(problem: DisplacementProblem, G: Tensor, H: Tensor, part: dict[str, Any]) -> dict[int, float]:
    """Relative error by number of steps of Adam on the squared error, from G and H."""
    G, H = G.clone().requires_grad_(), H.clone().requires_grad_()
    optimiser = torch.optim.Adam([G, H], lr=part["descent_rate"])
    errors = {}
    for step in range(1, part["descent_steps"][-1] + 1):
        optimiser.zero_grad()
        problem.relative_error(G, H).square().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step in part["descent_steps"]:
            errors[step] = problem.relative_error(G, H).item()
    return errors


def _outcome(fit: Fit) -> dict[str, Any]:
    return {"error": fit.relative_error, "steps": fit.steps, "converged": fit.converged}


def _normal(terms: int, generator: torch.Generator) -> Tensor:
    return torch.randn(SIZE, terms, generator=generator, dtype=torch.float64)


def _relative_error(matrix: Tensor, near: Tensor) -> float:
    return float((matrix - near).norm() / matrix.norm())
