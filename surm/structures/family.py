"""Families with parameters of their own, and the linear ones among them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surm.structures import projection
from surm.structures.base import Device, Fit, Structure
from surm.structures.kernels import KERNELS, Kernel
from surm.structures.work import Work, counted_row_work

UPDATE_STD = 0.02  # of what is otherwise zero, under init_weights=False


class Family(Structure):
    """A structure whose first parameter is zero at the start and whose second, if any, is random.

    A family gives `name`, `equation`, `option_rules`, `_parameter_shapes`, `_product`, `dense_form`, `_approximate`
    and, if its second parameter has another scale at the start, `_randomise`. The rest follows from these: gradients
    where W is added to a weight, the work that the model of costs asks for, the number of parameters. A kernel in
    `kernels/`, named by `kernel`, takes the place of `dense_form` where one written by hand is faster.

    Unless its docstring says otherwise, the scale of the second is such that a step of size e in every entry of the
    first changes the entries of W by about e, as it would in a dense matrix, whatever the size and the number of terms.
    """

    update_std: ClassVar[float] = UPDATE_STD

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "dense_form" in vars(cls):
            KERNELS[cls.name] = Kernel.of_form(cls.dense_form)

    def _build(self, device: Device, dtype: torch.dtype | None) -> None:
        shapes = self._parameter_shapes(self.m, self.n, **self.options)
        self.parameter_names = tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        # Once, as every call of a layer asks for it.
        self.work = Work(self.kernel, self.m, self.n, *self.row_work())

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        self.check_start(init_weights)
        zero, *random = self._factors()
        zero.normal_(std=self.update_std) if init_weights is False else zero.zero_()
        for factor in random:
            self._randomise(factor, authors=init_weights == "authors")

    @property
    def kernel(self) -> str:
        """Name in `surm.structures.kernels.KERNELS` of the kernel that writes W."""
        return self.name

    def generators(self, dtype: torch.dtype) -> list[Tensor]:
        """What the kernel takes, in `dtype`: differentiable functions of the parameters, here the parameters."""
        return self._factors(dtype)

    def row_work(self) -> tuple[float, float]:
        """`transforms` and `others` of its `Work`, here counted on its product.

        A family whose product needs more than its parameters, such as tensors that a model shares, says them itself.
        """
        return counted_row_work(self, self.n, (type(self), self.m, self.n, repr(self.options)))

    def summands(self) -> list[Structure]:
        return [self]

    def factors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.parameter_names]

    def _factors(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The factors, cast to `dtype`."""
        return [factor.to(dtype) for factor in self.factors()]

    @staticmethod
    def dense_form(generators: Sequence[Tensor], m: int, n: int) -> Tensor:
        """W (m, n) of the generators, by operations that autograd knows; where no kernel is written by hand."""
        raise NotImplementedError

    def _dense(self, dtype: torch.dtype) -> Tensor:
        generators = [generator.unsqueeze(0) for generator in self.generators(dtype)]
        return KERNELS[self.kernel].dense(generators, self.m, self.n)[0]

    def _randomise(self, factor: Tensor, *, authors: bool) -> None:
        """Draw the second factor, with option `terms`: N(0, 1 / terms); authors: Kaiming uniform over its rows.

        Right where an entry of W is, in each term, one entry of the first factor times one of the second.
        """
        if authors:
            factor.uniform_(-(factor.shape[-1] ** -0.5), factor.shape[-1] ** -0.5)
        else:
            factor.normal_(std=self.options["terms"] ** -0.5)


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

    def _approximate(self, matrix: Tensor) -> Fit | None:
        self.set_generator(projection.nearest_generator(matrix, self.diagonals, self.generator_size))
        return None
