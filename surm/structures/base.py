"""The contract that every structured matrix keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from surm.structures.autocast import without_autocast
from surm.structures.options import Option, is_count

Device = torch.device | str | None
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """How well an optimiser reached a matrix that has no closed-form projection."""

    relative_error: float  # Frobenius norm of the difference over that of the matrix
    steps: int  # of the optimiser, all starts together
    converged: bool


class Structure(nn.Module, ABC):
    """A trainable m x n matrix W of one structured family: y = W x on the last dimension of x.

    Raises ValueError, in one sentence, for an impossible size, option name or option value.
    """

    name: ClassVar[str]
    equation: ClassVar[str]
    option_rules: ClassVar[Mapping[str, Option]]
    needs_weight: ClassVar[bool] = False  # whether `attach` must be called before W is there
    shares: ClassVar[bool] = False  # whether W is read from tensors of a whole model: `surm.structures.shared`

    def __init__(
        self, m: int, n: int, *, device: Device = None, dtype: torch.dtype | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.options = self.check_options(m, n, **options)
        self.m, self.n = m, n
        self.fit: Fit | None = None  # set by `nearest` where an optimiser was needed
        self._build(device, dtype)
        self.reset_parameters()

    @classmethod
    def check_options(cls, m: int, n: int, **options: Any) -> dict[str, Any]:
        """All options of an m x n member; what is None or not given takes its default."""
        for letter, size in (("m", m), ("n", n)):
            if not is_count(size):
                raise ValueError(f"{cls.name}: {letter}={size!r} is not a size; give an integer of at least 1.")
        for name in options.keys() - cls.option_rules.keys():
            raise ValueError(f"{cls.name} has no option {name!r}; its options are {', '.join(cls.option_rules)}.")
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            if not cls.option_rules[name].accepts(value):
                raise ValueError(f"{cls.name}: {name}={value!r} is not possible; give {cls.option_rules[name].rule}.")
        return {name: option.default for name, option in cls.option_rules.items()} | given

    @classmethod
    def num_parameters(cls, m: int, n: int, **options: Any) -> int:
        """Number of trainable parameters of an m x n member, without building it."""
        return sum(map(prod, cls._parameter_shapes(m, n, **cls.check_options(m, n, **options)).values()))

    @classmethod
    def nearest(cls, matrix: Tensor, **options: Any) -> Self:
        """The member nearest to `matrix` (m, n) in Frobenius norm, in its dtype and on its device.

        Exact, with `fit` None, where a closed form exists; else `fit` says how far a deterministic optimiser came.
        """
        if matrix.ndim != 2:
            raise ValueError(f"{cls.name}: nearest takes one matrix, not a tensor of shape {tuple(matrix.shape)}.")
        if not matrix.isfinite().all():
            raise ValueError(
                f"{cls.name}: nearest takes a finite matrix; this one has an entry that is NaN or infinite."
            )
        # Made without storage first, so that nothing is drawn from the caller's random generator.
        member = cls(*matrix.shape, device="meta", dtype=torch.float64, **options).to_empty(device=matrix.device)
        with torch.no_grad():
            member.fit = member._approximate(matrix.to(torch.float64))
        return member.to(matrix.dtype)

    @abstractmethod
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        """Draw the parameters anew.

        True: W is exactly zero, its gradient is not. "authors": the same with the scales of the authors' code. False: W
        is random and not zero. Any other string raises ValueError.
        """

    def forward(self, x: Tensor) -> Tensor:
        """y = W x: (..., n) -> (..., m), computed in float32 or float64, returned in the dtype of x."""
        self.check_input(x)
        with without_autocast(x):
            return self._product(x.to(self.compute_dtype(x.dtype))).to(x.dtype)

    def check_input(self, x: Tensor) -> None:
        """Raises ValueError for an x that W cannot be multiplied by, which an FFT would cut or pad without a word."""
        if x.shape[-1:] != (self.n,):
            raise ValueError(f"{self.name}: x has shape {tuple(x.shape)}; give it a last dimension of n={self.n}.")

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (m, n), differentiable, in `dtype`, by default in that of its factors; computed in float32 or float64."""
        first = self.factors()[0]
        dtype = dtype or first.dtype
        with without_autocast(first):
            return self._dense(self.compute_dtype(dtype)).to(dtype)

    def attach(self, weight: Tensor) -> None:
        """See the frozen weight (m, n), in float32 or float64, that W will be added to.

        A tuner calls it once, for structures with `needs_weight` alone: when W is put beside the weight or, where the
        weight has no storage then, when it was loaded. What `attach` keeps of it, a buffer say, is frozen.
        """

    @abstractmethod
    def factors(self) -> list[Tensor]:
        """The tensors that W is made of, what is trained first; the first has the dtype and the device of W.

        Read as attributes, since a replica of `nn.DataParallel` has no parameters.
        """

    @abstractmethod
    def summands(self) -> list["Structure"]:
        """The members of single families that W is the sum of, W itself if it is one.

        Each has a `kernel`, a name of `surm.structures.kernels.KERNELS`, and `generators` for it.
        """

    def collapse(self) -> "Structure":
        """The same W, up to rounding, with fewer stored numbers, for use after training (paper section 5.2).

        Raises ValueError for a family that has no such form.
        """
        raise ValueError(f"{self.name} cannot be collapsed: no fewer numbers than its parameters give the same matrix.")

    def extra_repr(self) -> str:
        return ", ".join([f"{self.m}, {self.n}", *(f"{name}={value!r}" for name, value in self.options.items())])

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In which a product with an x of this dtype is computed: float32, or float64 if either side is."""
        wider = torch.promote_types(dtype, self.factors()[0].dtype)
        return torch.promote_types(wider, torch.float32)

    @classmethod
    @abstractmethod
    def _parameter_shapes(cls, m: int, n: int, **options: Any) -> dict[str, Shape]:
        """Names and shapes of the parameters for resolved options."""

    @abstractmethod
    def _build(self, device: Device, dtype: torch.dtype | None) -> None:
        """Register the parameters."""

    @abstractmethod
    def _product(self, x: Tensor) -> Tensor:
        """W x, computed in the dtype of x."""

    def _dense(self, dtype: torch.dtype) -> Tensor:
        """W, computed in `dtype`: here by its product with the identity."""
        return self._product(torch.eye(self.n, dtype=dtype, device=self.factors()[0].device)).mT

    def _approximate(self, matrix: Tensor) -> Fit | None:
        """Set the parameters to the member nearest to `matrix` (float64)."""
        raise ValueError(f"{self.name} has no nearest member: its parameters alone do not make a matrix.")
