"""Kronecker products."""

from typing import Any, ClassVar

from torch import Tensor

from surm.structures import functional, projection
from surm.structures.base import Fit, Shape
from surm.structures.family import Family
from surm.structures.options import Option, count, is_shape


def divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]


def best_factor_shape(m: int, n: int) -> list[int]:
    """Shape m1 x n1 of A with the fewest parameters, then the highest rank of A kron B, then the larger m1."""

    def preference(shape: list[int]) -> tuple[int, int, int]:
        m1, n1 = shape
        m2, n2 = m // m1, n // n1
        return m1 * n1 + m2 * n2, -min(m1, n1) * min(m2, n2), -m1

    return min(([m1, n1] for m1 in divisors(m) for n1 in divisors(n)), key=preference)


class Kronecker(Family):
    """Sum of Kronecker products, sum_t A_t kron B_t (paper section 5.1, appendix A.2).

    A (terms, m1, n1) starts at zero, B (terms, m / m1, n / n1) ~ N(0, 1 / terms); authors: Kaiming uniform, that is
    within 1 / sqrt(n / n1). `factor_shape` is [m1, n1], where m1 divides m and n1 divides n; by default the one with
    the fewest parameters, then the highest rank, then the larger m1. m1 n1 + m n / (m1 n1) parameters a term.
    """

    name = "kronecker"
    equation = "sections 3 and 5.1, appendix A.2"
    option_rules: ClassVar = {
        "factor_shape": Option(list[int], None, is_shape, "two integers [m1, n1], m1 a divisor of m and n1 of n"),
        "terms": count(),
    }

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        resolved = super().check_options(m, n, **options)
        m1, n1 = resolved["factor_shape"] or best_factor_shape(m, n)
        for letter, factor, size in (("m", m1, m), ("n", n1, n)):
            if size % factor:
                raise ValueError(
                    f"{cls.name}: factor_shape={[m1, n1]} does not fit a {m} x {n} matrix, since {letter}1={factor} "
                    f"does not divide {letter}={size}; give one of {', '.join(map(str, divisors(size)))}."
                )
        return resolved | {"factor_shape": [m1, n1]}

    @classmethod
    def fitting_size(cls, **options: Any) -> tuple[int, int]:
        m1, n1 = options.get("factor_shape", (1, 1))
        return m1, n1

    @classmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        (m1, n1), terms = options["factor_shape"], options["terms"]
        return {"A": (terms, m1, n1), "B": (terms, m // m1, n // n1)}

    def _product(self, x: Tensor) -> Tensor:
        A, B = self._factors(x.dtype)
        return functional.kronecker_product(A, B, x)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        A, B = self._factors()
        left, right = projection.nearest_kronecker(matrix, A.shape[1:], self.options["terms"])
        A.copy_(left)
        B.copy_(right)
        return None
