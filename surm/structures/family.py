"""Families with parameters of their own, and the linear ones among them."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from surm.structures import functional, projection
from surm.structures.base import Device, Fit, Structure

UPDATE_STD = 0.02  # of what is otherwise zero, under init_weights=False


class Work(NamedTuple):
    """What computing with a matrix takes, for a model of costs.

    Attributes:
        kernel: name of its kernel.
        m: rows of the matrix.
        n: columns.
        transforms: what `forward` transforms for a row of x: entries, times the doublings of their number.
        others: its multiplications with additions for a row outside of transforms.
    """

    kernel: str
    m: int
    n: int
    transforms: float
    others: float


class Family(Structure):
    """A structure whose first parameter is zero at the start and whose second, if any, is random.

    Unless its docstring says otherwise, the scale of the second is such that a step of size e in every entry of the
    first changes the entries of W by about e, as it would in a dense matrix, whatever the size and the number of terms.
    """

    update_std: ClassVar[float] = UPDATE_STD

    def _build(self, device: Device, dtype: torch.dtype | None) -> None:
        for name, shape in self._parameter_shapes(self.m, self.n, **self.options).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        # Once, as every call of a layer asks for it.
        self.work = Work(self.kernel, self.m, self.n, *self.row_work())

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        if not isinstance(init_weights, bool) and init_weights != "authors":
            raise ValueError(f'{self.name}: init_weights={init_weights!r} is unknown; give True, False or "authors".')
        zero, *random = self._factors()
        zero.normal_(std=self.update_std) if init_weights is False else zero.zero_()
        for factor in random:
            self._randomise(factor, authors=init_weights == "authors")

    @property
    @abstractmethod
    def kernel(self) -> str:
        """By which W is written, a name of `surm.structures.kernels.KERNELS`."""

    @abstractmethod
    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        """What the kernel takes, in `dtype`: differentiable functions of the parameters."""

    @abstractmethod
    def row_work(self) -> tuple[float, float]:
        """`transforms` and `others` of its `Work`."""

    def summands(self) -> list[Structure]:
        return [self]

    def _factors(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The parameters in their order, cast to `dtype`."""
        return [parameter.to(dtype) for parameter in self.parameters(recurse=False)]

    @abstractmethod
    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        """Draw the factor that is random at the start."""


class ConstantDiagonals(Family):
    """A linear space of Toeplitz matrices: each entry of a generator stands on one or more diagonals."""

    @property
    @abstractmethod
    def generator_size(self) -> int:
        """Dimension of the space."""

    @abstractmethod
    def generator(self, dtype: torch.dtype) -> Tensor:
        """The generator of W (generator_size,), summed over the terms."""

    @abstractmethod
    def set_generator(self, generator: Tensor) -> None:
        """Spread a generator evenly over the terms."""

    @abstractmethod
    def diagonals(self, generator: Tensor) -> Tensor:
        """(generator_size,) -> (m + n - 1,), from the upper right corner to the lower left one."""

    def is_linear(self) -> bool:
        """Whether the chosen options keep to that space."""
        return True

    def _dense(self, dtype: torch.dtype) -> Tensor:
        return functional.dense_toeplitz(self.diagonals(self.generator(dtype)), self.n)

    def _approximate(self, matrix: Tensor) -> Fit | None:
        self.set_generator(projection.nearest_generator(matrix, self.diagonals, self.generator_size))
        return None
