"""Intervals, tests and a model over tasks for paired comparisons; deterministic: the same data give the same digits.

Two methods with S seeds on N examples differ by d[s, i] points, seed s paired with seed s, example i with example i:

    d[s, i] = mu + a_s + b_i + e_si,   Var(mean) = sa2 / S + sb2 / N + se2 / (S N)

The error of the mean is the sum of two independent parts. That of the seeds, sa2 / S + se2 / (S N), is estimated by the
spread of the S seed means, MSA / (S N), and follows Student's t with S - 1 degrees of freedom. What is left is that of
the examples, sb2 / N, estimated by max(MSB - MSE, 0) / (S N), and normal, since N is large. Resampling examples and
taking the spread of seed means, both in full, would count se2 twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import gammaln, kve
from scipy.stats import chi2, norm, qmc
from scipy.stats import t as student_t

Array = NDArray[np.float64]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)  # of the integral over frequencies
NEGLIGIBLE = 1e-14  # where a characteristic function is taken for 0


@dataclass(frozen=True)
class Spread:
    """The distribution of an estimate's error: normal(0, `normal`^2) + sum of `scale` t(`freedom`), all independent.

    Args:
        normal: standard deviation of the examples' part.
        scales: of the seeds' parts, one for each independent group of seeds (a task).
        freedoms: their degrees of freedom, seeds - 1.
    """

    normal: float
    scales: tuple[float, ...] = ()
    freedoms: tuple[int, ...] = ()

    @classmethod
    def of_mean(cls, spreads: Sequence["Spread"]) -> "Spread":
        """Of the mean of independent estimates, one a task."""
        share = 1 / len(spreads)
        return cls(
            share * float(np.sqrt(sum(spread.normal**2 for spread in spreads))),
            tuple(share * scale for spread in spreads for scale in spread.scales),
            tuple(freedom for spread in spreads for freedom in spread.freedoms),
        )

    def cdf(self, x: ArrayLike) -> Array:
        """P(error <= x) of each x, by inversion of the characteristic function (Gil-Pelaez 1951) or in closed form.

            F(x) = 1/2 + 1/pi  int_0^inf  phi(u) sin(u x) / u  du

        phi is real and falls exponentially, so that Gauss-Legendre nodes on the part where it counts give 10 digits.
        """
        x = np.asarray(x, dtype=np.float64)
        parts = [(scale, freedom) for scale, freedom in zip(self.scales, self.freedoms, strict=True) if scale > 0]
        if not parts:
            # Without any error half the mass is taken on either side, so that nothing differs from itself.
            return np.asarray(norm.cdf(x, scale=self.normal) if self.normal > 0 else (np.sign(x) + 1) / 2)
        if self.normal == 0 and len(parts) == 1:
            return np.asarray(student_t.cdf(x / parts[0][0], parts[0][1]))
        unit, u, integrand = self._inversion
        far = np.clip(x / unit, -40, 40)  # beyond, the tails of the t parts alone are left
        inside = 0.5 + np.sin(far[..., None] * u) @ integrand / np.pi
        return np.clip(inside, 0.0, 1.0)

    @cached_property
    def _inversion(self) -> tuple[float, Array, Array]:
        """The unit of x, frequencies in 1 / unit, and phi(u) / u times the weight of each: the same for every x."""
        unit = self.normal + sum(self.scales)
        normal = self.normal / unit
        parts = [
            (scale / unit, freedom) for scale, freedom in zip(self.scales, self.freedoms, strict=True) if scale > 0
        ]

        def phi(u: Array) -> Array:
            values = np.exp(-((normal * u) ** 2) / 2)
            for scale, freedom in parts:
                values = values * _phi_of_t(scale * u, freedom)
            return np.asarray(values)

        end = 1.0
        while phi(np.array([end]))[0] > NEGLIGIBLE:
            end *= 1.25
        u = end * (NODES + 1) / 2
        return unit, u, phi(u) / u * WEIGHTS * end / 2

    def quantile(self, level: float) -> float:
        """The x with P(error <= x) = `level`, to 1e-9 of the spread's size."""
        unit = self.normal + sum(self.scales)
        if unit == 0:
            return 0.0
        if level < 0.5:
            return -self.quantile(1 - level)
        high = unit
        while self.cdf(high) < level:
            high *= 2
        return float(brentq(lambda x: float(self.cdf(x)) - level, 0.0, high, xtol=1e-9 * unit))


def _phi_of_t(u: Array, freedom: int) -> Array:
    """Characteristic function of Student's t: K_{v/2}(sqrt(v) |u|) (sqrt(v) |u|)^{v/2} / (Gamma(v/2) 2^{v/2 - 1})."""
    half, z = freedom / 2, np.sqrt(freedom) * np.abs(u)
    z = np.maximum(z, 1e-12)
    logarithm = np.log(kve(half, z)) - z + half * np.log(z) - gammaln(half) - (half - 1) * np.log(2)
    return np.asarray(np.exp(logarithm))


@dataclass(frozen=True)
class Difference:
    """An estimate (points) and the distribution of its error."""

    value: float
    spread: Spread

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided confidence interval."""
        half = self.spread.quantile((1 + level) / 2)
        return self.value - half, self.value + half

    def p_above(self, threshold: float = 0.0) -> float:
        """One-sided p-value of "not above the threshold": small where the estimate lies well above it."""
        return 1 - float(self.spread.cdf(self.value - threshold))

    def p_below(self, threshold: float = 0.0) -> float:
        """One-sided p-value of "not below the threshold"."""
        return float(self.spread.cdf(self.value - threshold))

    def p_differs(self, threshold: float = 0.0) -> float:
        """Two-sided p-value of "equal to the threshold"."""
        return min(1.0, 2 * min(self.p_above(threshold), self.p_below(threshold)))

    def p_equivalent(self, margin: float) -> float:
        """p-value of two one-sided tests: small where the estimate lies surely within +- `margin`.

        Below 0.05 exactly where the 90 % interval lies within the margins (Schuirmann 1987).
        """
        return max(self.p_above(-margin), self.p_below(margin))

    def half_width(self, level: float = 0.95) -> float:
        """Half the width of the two-sided interval."""
        return self.spread.quantile((1 + level) / 2)

    def power(self, gain: float) -> float:
        """Chance that a true gain of so many points is found: that the 95 % interval then lies above 0."""
        return 1 - float(self.spread.cdf(self.half_width() - gain))

    def power_equivalent(self, margin: float) -> float:
        """Chance that two equal methods are found equivalent within the margin."""
        room = margin - self.half_width(0.90)
        return max(0.0, 2 * float(self.spread.cdf(room)) - 1)

    @classmethod
    def mean_of(cls, differences: Sequence["Difference"]) -> "Difference":
        """The mean over tasks, each with its own seeds and examples; the tasks are taken as they are."""
        value = float(np.mean([difference.value for difference in differences]))
        return cls(value, Spread.of_mean([difference.spread for difference in differences]))


def paired_difference(table: ArrayLike) -> Difference:
    """The mean of d[s, i] and the distribution of its error; see the top of this file.

    Args:
        table: (S, N) differences in points, a seed a row, an example a column; S and N at least 2.

    Raises:
        ValueError: fewer than two seeds or examples, or a value that is no number.
    """
    d = np.asarray(table, dtype=np.float64)
    if d.ndim != 2 or min(d.shape) < 2:
        raise ValueError(f"a table of shape {d.shape}: give at least two seeds (rows) and two examples (columns).")
    if not np.isfinite(d).all():
        raise ValueError("the table holds a value that is no number: give finite differences.")
    seeds, examples = d.shape
    mean, by_seed, by_example = d.mean(), d.mean(axis=1), d.mean(axis=0)
    msa = examples * np.sum((by_seed - mean) ** 2) / (seeds - 1)
    msb = seeds * np.sum((by_example - mean) ** 2) / (examples - 1)
    residual = d - by_seed[:, None] - by_example + mean
    mse = np.sum(residual**2) / ((seeds - 1) * (examples - 1))
    return Difference(float(mean), spread_of(msa, msb, mse, seeds, examples))


def spread_of(msa: float, msb: float, mse: float, seeds: int, examples: int) -> Spread:
    """The error of the mean from the mean squares of seeds, examples and what is left."""
    cells = seeds * examples
    return Spread(float(np.sqrt(max(msb - mse, 0.0) / cells)), (float(np.sqrt(msa / cells)),), (seeds - 1,))


# --- several comparisons ----------------------------------------------------------------------------------------------


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values that keep the chance of any false rejection (Holm 1979)."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def benjamini_hochberg(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values that keep the expected share of false rejections (Benjamini and Hochberg 1995)."""
    adjusted: dict[str, float] = {}
    least = 1.0
    ordered = sorted(p_values.items(), key=lambda item: item[1], reverse=True)
    for rank, (name, p) in enumerate(ordered):
        least = min(least, p * len(ordered) / (len(ordered) - rank))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


SOBOL_POWER = 14  # 2^14 points give the critical value to about 0.01


@dataclass(frozen=True)
class Simultaneous:
    """Several methods' differences to one reference, judged all at once (max-t, Dunnett 1955).

        value_k +- c  size_k,   P(max_k |T_k| <= c) = level

    T is the vector of standardised errors: normal with the correlation of the methods' examples parts, plus t with the
    correlation of their seed means, which share one chi-square as all methods have the same seeds. Its largest entry
    is drawn at a fixed set of Sobol points.

    values, sizes: of each method, its difference (points) and the size of its error.
    largest: max_k |T_k| at the points, sorted.
    """

    values: Mapping[str, float]
    sizes: Mapping[str, float]
    largest: Array

    @classmethod
    def of(cls, tables: Mapping[str, ArrayLike]) -> "Simultaneous":
        """From method -> (S, N) differences to the reference, with the same seeds and examples for all."""
        data = np.stack([np.asarray(table, dtype=np.float64) for table in tables.values()])
        methods, seeds, _ = data.shape
        differences = [paired_difference(table) for table in data]
        normals = np.array([difference.spread.normal for difference in differences])
        scales = np.array([difference.spread.scales[0] for difference in differences])
        sizes = np.hypot(normals, scales)
        by_seed, by_example = _root(data.mean(axis=2)), _root(data.mean(axis=1))
        uniform = np.clip(qmc.Sobol(2 * methods + 1, seed=0).random_base2(SOBOL_POWER), 1e-9, 1 - 1e-9)
        points = norm.ppf(uniform[:, :-1])
        from_examples = points[:, :methods] @ by_example.T * normals
        from_seeds = points[:, methods:] @ by_seed.T * scales
        chi = np.sqrt(chi2.ppf(uniform[:, -1], seeds - 1) / (seeds - 1))
        errors = np.abs(from_examples + from_seeds / chi[:, None]) / np.where(sizes > 0, sizes, 1)
        return cls(
            {name: difference.value for name, difference in zip(tables, differences, strict=True)},
            dict(zip(tables, map(float, sizes), strict=True)),
            np.sort(errors.max(axis=1)),
        )

    def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Intervals that hold all at once."""
        critical = float(np.quantile(self.largest, level))
        halves = {name: critical * size for name, size in self.sizes.items()}
        return {name: (value - halves[name], value + halves[name]) for name, value in self.values.items()}

    def p_differs(self, threshold: float = 0.0) -> dict[str, float]:
        """Adjusted p-values: the least 1 - level at which a method's interval excludes the threshold."""
        found = {}
        for name, value in self.values.items():
            size = self.sizes[name] or 1e-12
            above = len(self.largest) - np.searchsorted(self.largest, abs(value - threshold) / size)
            found[name] = float((above + 1) / (len(self.largest) + 1))
        return found


def simultaneous_intervals(tables: Mapping[str, ArrayLike], level: float = 0.95) -> dict[str, tuple[float, float]]:
    """The intervals of `Simultaneous`."""
    return Simultaneous.of(tables).intervals(level)


def _root(rows: Array) -> Array:
    """A matrix L with L L^T = correlation of the rows; rows without variance are independent of the others."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(centred, axis=1)
    unit = centred / np.where(sizes > 0, sizes, 1)[:, None]
    correlation = unit @ unit.T
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


# --- all tasks in one model -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverTasks:
    """Posterior of the mean gain over tasks of a kind, of which those at hand are a sample.

        y_k ~ Normal(theta_k, size_k^2),  theta_k ~ Normal(mu, tau^2),  mu flat,  tau ~ half-normal(`tau_scale`)

    on a grid of mu and tau; theta is integrated in closed form.

    Args:
        values: y_k, the gain of each task (points).
        sizes: standard deviation of each one's error.
    """

    values: tuple[float, ...]
    sizes: tuple[float, ...]
    tau_scale: float = 1.0

    @cached_property
    def _grid(self) -> tuple[Array, Array, Array]:
        y, size = np.array(self.values), np.array(self.sizes)
        reach = 8 * (self.tau_scale + float(size.max()))
        mu = np.linspace(y.min() - reach, y.max() + reach, 1_601)
        tau = np.linspace(0.0, 6 * self.tau_scale, 401)
        variance = tau[:, None] ** 2 + size**2
        logarithm = -0.5 * (tau / self.tau_scale) ** 2 - 0.5 * np.log(variance).sum(axis=1)
        residual = (y - mu[:, None, None]) ** 2 / variance
        joint = logarithm - 0.5 * residual.sum(axis=2)
        weights = np.exp(joint - joint.max())
        return mu, tau, weights / weights.sum()

    def probability(self, holds: Callable[[Array], NDArray[np.bool_]]) -> float:
        """Posterior probability of a statement about mu, such as `lambda mu: mu > 0`."""
        mu, _, weights = self._grid
        return float(weights[holds(mu)].sum())

    def new_task_above(self, threshold: float) -> float:
        """Probability that the gain on a further task of this kind is at least `threshold`."""
        mu, tau, weights = self._grid
        return float((weights * norm.sf((threshold - mu[:, None]) / np.maximum(tau, 1e-9))).sum())
