"""Frobenius projections onto the families: closed forms, and an optimiser where there is none."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from surm.structures.base import Fit, Structure

RANDOM_STARTS = 2
MAX_STEPS = 5000  # a start
PERFECT = 1e-6  # relative error where no further start is tried
SWEEPS_A_CHECK = 25  # of alternating least squares, between two looks at the error


def sum_diagonals(matrix: Tensor) -> Tensor:
    """Sum of each diagonal of (m, n), from the upper right corner to the lower left one: (m + n - 1,)."""
    m, n = matrix.shape
    offsets = torch.arange(m, device=matrix.device)[:, None] - torch.arange(n, device=matrix.device) + n - 1
    return matrix.new_zeros(m + n - 1).index_add(0, offsets.flatten(), matrix.flatten())


def nearest_generator(matrix: Tensor, diagonals: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Generator (size,) of the nearest member of a space of Toeplitz matrices (paper appendix A.6).

    `diagonals` gives each diagonal one entry of the generator up to its sign, so that the projection is the mean over
    the entries of `matrix` where that entry stands. As K = max(m, n), each entry of a generator stands somewhere.
    """
    signs, *adjoint = torch.func.vjp(diagonals, matrix.new_ones(size))
    (sums,), (counts,) = adjoint[0](sum_diagonals(matrix)), adjoint[0](sum_diagonals(torch.ones_like(matrix)) * signs)
    mean: Tensor = sums / counts
    return mean


def nearest_generators(matrix: Tensor, spaces: Sequence[tuple[Callable[[Tensor], Tensor], int]]) -> tuple[Tensor, ...]:
    """Generators of the nearest sum of members of several such spaces, by least squares over their joint basis."""
    counts = sum_diagonals(torch.ones_like(matrix))
    basis = torch.cat([diagonals(torch.eye(size).to(matrix)) for diagonals, size in spaces])  # (sizes, m + n - 1)
    weights = counts.sqrt()
    target = sum_diagonals(matrix) / counts
    # The spaces may overlap, so that the smallest solution is taken: gelsd, the CPU's rank-revealing driver.
    solution = torch.linalg.lstsq((basis * weights).T.cpu(), (target * weights)[:, None].cpu(), driver="gelsd").solution
    return torch.split(solution[:, 0].to(matrix), [size for _, size in spaces])


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (m, rank) and (rank, n) of the nearest matrix of that rank; each takes the root of a singular value."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    left, right = matrix.new_zeros(matrix.shape[0], rank), matrix.new_zeros(rank, matrix.shape[1])
    left[:, : len(S)] = (U * S.sqrt())[:, :rank]
    right[: len(S)] = (S.sqrt()[:, None] * Vh)[:rank]
    return left, right


def nearest_kronecker(matrix: Tensor, shape: Sequence[int], terms: int) -> tuple[Tensor, Tensor]:
    """A (terms, m1, n1) and B (terms, m2, n2) of the nearest sum of Kronecker products.

    The rearrangement of Van Loan and Pitsianis (1993) turns A kron B into the outer product of vec A and vec B.
    """
    m1, n1 = shape
    m2, n2 = matrix.shape[0] // m1, matrix.shape[1] // n1
    blocks = matrix.reshape(m1, m2, n1, n2).permute(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)
    left, right = truncated_svd(blocks, terms)
    return left.T.reshape(terms, m1, n1), right.reshape(terms, m2, n2)


def displacement_generators(matrix: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """G, H (terms, K) of the square matrix whose displacement Z_1 W - W Z_{-1} is the nearest one of rank `terms`.

    With the displacement sum_i g_i h_i^T, W = 1/2 sum_i Z_1(g_i) Z_{-1}(h_i reversed) (paper appendix A.1; Pan,
    Structured Matrices and Polynomials, 2001): exact where the matrix is a member, and for terms = K always.
    """
    shifted = matrix.roll(-1, dims=1)
    shifted[:, -1] *= -1
    left, right = truncated_svd(matrix.roll(1, dims=0) - shifted, terms)
    return left.T / 2, right.flip(1)


class DisplacementProblem:
    """The fit of W = sum_i Z_1(g_i) Z_{-1}(h_i) to a real n x n matrix, in coordinates where its rows decouple.

    With F and E the rows of sinusoids that make Z_1(g) = F^-1 diag(F g) F and Z_{-1}(h) = E^-1 diag(E h) E, both
    sqrt(n) times unitary, and M = F E^-1, whose entries have modulus 1 / (n |sin(pi (k - l - 1/2) / n)|),

        ||matrix - W|| = ||F matrix E^-1 - M * (sum_i (F g_i) (E h_i)^T)||   (* elementwise):

    a weighted low-rank approximation (Srebro and Jaakkola 2003). G and H are (n, r), a term a column.
    """

    def __init__(self, matrix: Tensor) -> None:
        n = len(matrix)
        frequencies = torch.arange(n, dtype=torch.float64, device=matrix.device)
        self.F, self.E = _sinusoids(frequencies, n), _sinusoids(frequencies + 0.5, n)
        self.M = self.F @ self.E.mH / n
        self.target = self.F @ matrix.to(self.F.dtype) @ self.E.mH / n
        self.norm = matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny)

    def relative_error(self, G: Tensor, H: Tensor) -> Tensor:
        """||matrix - W|| / ||matrix||, differentiable. O(n^2 r)."""
        spectra = (self.F @ G.to(self.F.dtype)) @ (self.E @ H.to(self.E.dtype)).mT
        return torch.div((self.target - self.M * spectra).norm(), self.norm)

    def alternate(self, H: Tensor, *, tolerance: float = 1e-4, max_sweeps: int = 5000) -> tuple[Tensor, Tensor, Fit]:
        """Alternating least squares from H (n, r), r <= n: G for H, then H for G; the error never rises.

        With one side fixed, each row of the other one's spectrum has a least-squares problem of its own in r unknowns.
        Stops when `SWEEPS_A_CHECK` sweeps lower the error by no more than `tolerance` of itself. Returns G, with
        orthonormal columns, H and the fit, whose steps are sweeps. O(n^2 r^2 + n r^3) a sweep.
        """
        find_G = _RowProblems(self.M, self.target, frequency_shift=0.0)
        find_H = _RowProblems(self.M.mT, self.target.mT, frequency_shift=0.5)
        error, converged, sweeps = torch.inf, False, 0
        while not converged and sweeps < max_sweeps:
            before = error
            for _ in range(SWEEPS_A_CHECK):
                # Only the span of the fixed side matters; an orthonormal basis keeps the systems well-conditioned.
                G = torch.linalg.qr(find_G.solve(self.E @ torch.linalg.qr(H).Q.to(self.E.dtype))).Q
                H = find_H.solve(self.F @ G.to(self.F.dtype))
            sweeps += SWEEPS_A_CHECK
            error = self.relative_error(G, H).item()
            converged = before - error <= tolerance * error
        return G, H, Fit(error, sweeps, converged)


class _RowProblems:
    """min_A ||target - M * (S B^T)|| over real A (n, r) with spectrum S, given the other side's spectrum B (n, r)."""

    def __init__(self, M: Tensor, target: Tensor, *, frequency_shift: float) -> None:
        # The spectrum of a real sequence is conjugate-symmetric: half of its rows give the others.
        n = len(M)
        frequencies = torch.arange(n, dtype=torch.float64, device=M.device) + frequency_shift
        half = frequencies[2 * frequencies <= n]
        rows = slice(len(half))
        self.weights = M[rows].abs().square()
        self.weighted_target = M[rows].conj() * target[rows]
        occurrences = torch.where(2 * half % n == 0, 1, 2)
        self.inverse = (occurrences[:, None] / n * _sinusoids(half, n)).mH

    def solve(self, B: Tensor) -> Tensor:
        r = B.shape[1]
        products = torch.view_as_real(B.conj()[:, :, None] * B[:, None, :])
        normal = torch.view_as_complex((self.weights @ products.flatten(1)).view(-1, r, r, 2))
        right = (self.weighted_target @ B.conj())[:, :, None]
        A: Tensor = (self.inverse @ torch.cholesky_solve(right, torch.linalg.cholesky(normal))[:, :, 0]).real
        return A


def _sinusoids(frequencies: Tensor, n: int) -> Tensor:
    """exp(-2 pi i f j / n) for each frequency f, a row, and j < n."""
    angles = -2 * torch.pi / n * frequencies[:, None] * torch.arange(n, device=frequencies.device)
    return torch.polar(torch.ones_like(angles), angles)


def nearest_displacement(matrix: Tensor, terms: int) -> tuple[Tensor, Tensor, Fit]:
    """G, H (terms, n) of the sum_i Z_1(g_i) Z_{-1}(h_i) nearest to a square matrix, by alternating least squares.

    Starts where the displacement, not the matrix itself, is nearest, which is exact for a member, and then from random
    H, and keeps the best. The random starts are the same in every call; the caller's random generator is not used.
    """
    problem = DisplacementProblem(matrix)
    n = len(matrix)
    rank = min(terms, n)  # n terms reach every matrix; the others stay zero
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(RANDOM_STARTS, n, rank, generator=generator, dtype=matrix.dtype).to(matrix.device)
    G, H = (factor.mT for factor in displacement_generators(matrix, rank))
    fit, steps = Fit(problem.relative_error(G, H).item(), 0, converged=True), 0
    for start in (H, *random):
        if fit.relative_error < PERFECT:
            break
        other = problem.alternate(start)
        steps += other[-1].steps
        G, H, fit = min((G, H, fit), other, key=lambda found: found[-1].relative_error)
    G, H = (pad(factor.mT, (0, 0, 0, terms - rank)) for factor in (G, H))
    return G, H, replace(fit, steps=steps)


def minimise(structure: Structure, matrix: Tensor) -> Fit:
    """Fit the parameters to `matrix` by L-BFGS, from where they are and then from random starts, and keep the best.

    The random starts are the same in every call, and the caller's random generator is not used.
    """
    parameters = list(structure.parameters())
    norm = matrix.norm().clamp(min=torch.finfo(matrix.dtype).tiny)
    generator = torch.Generator().manual_seed(0)

    def difference() -> Tensor:
        return torch.div(structure.dense() - matrix, norm)

    best, best_error, steps, converged = [parameter.clone() for parameter in parameters], torch.inf, 0, False
    for start in range(1 + RANDOM_STARTS):
        if start:
            for parameter in parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
            scale = (norm / structure.dense().norm()).sqrt()
            for parameter in parameters:
                parameter.mul_(scale)
        taken = _descend(parameters, lambda: difference().square().sum())
        steps += taken
        error = difference().norm().item()
        if error < best_error:
            best, best_error, converged = [p.clone() for p in parameters], error, taken < MAX_STEPS
        if best_error < PERFECT:
            break
    for parameter, value in zip(parameters, best, strict=True):
        parameter.copy_(value)
    return Fit(best_error, steps, converged)


def _descend(parameters: Sequence[Tensor], loss: Callable[[], Tensor]) -> int:
    """Run L-BFGS until the loss, of order one, no longer changes; the number of steps."""
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=MAX_STEPS,
        max_eval=10 * MAX_STEPS,
        history_size=100,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    optimiser.zero_grad()
    return int(optimiser.state[parameters[0]]["n_iter"])
