"""A structure advisor: how much of what a weight is asked to change each family of matrices can follow."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from surm.structures import structure_class
from surm.structures.family import ConstantDiagonals
from surm.tuners.targets import fused_parts, projection_names

Family = tuple[str, Mapping[str, Any]]  # a structure and its options

FAMILIES: dict[str, Family] = {
    "circulant": ("circulant", {"parametrization": "direct"}),
    "skew_circulant": ("skew_circulant", {"parametrization": "direct"}),
    "toeplitz_symmetric": ("toeplitz", {"symmetric": True, "factors": 1}),
    "toeplitz_general": ("toeplitz", {"symmetric": False, "factors": 1}),
    "kronecker": ("kronecker", {}),
    "low_rank": ("low_rank", {"rank": 1}),
    "toeplitz_pair": ("toeplitz", {"symmetric": True, "factors": 2}),
    "ldr": ("ldr", {"terms": 1}),
}
EXACT = ("circulant", "skew_circulant", "toeplitz_symmetric", "toeplitz_general", "kronecker", "low_rank")
"""Families with an exact projection, asked by default; the others need an optimiser: seconds to minutes a matrix."""

UPDATES = ("gradient", "finetune")
RANDOM_DRAWS = 3  # of a Gaussian matrix, for the expectation of a family that is no linear space

_NO_GRADIENT = "The loss does not depend on any target weight: check loss_fn and target_modules"


@dataclass(frozen=True)
class Score:
    """How much of one layer's matrix G one family captures, at how many parameters."""

    layer: str
    family: str
    shape: tuple[int, int]
    norm: float  # of G, Frobenius
    parameters: int
    captured: float  # 1 - ||G - P(G)||^2 / ||G||^2
    expected: float  # the same for a matrix of independent Gaussian entries
    rank: int  # of the low-rank matrices nearest in parameters, at least 1
    captured_by_rank: float  # by the truncated SVD of that rank

    @property
    def gain(self) -> float:
        """Captured over expected: the captured share per parameter, in units of what a random matrix would give."""
        return self.captured / self.expected


@dataclass(frozen=True)
class Total:
    """One family over all layers; shares are of the squared norm of all matrices together."""

    family: str
    structure: str
    options: Mapping[str, Any]
    parameters: int
    captured: float
    expected: float
    captured_by_rank: float

    @property
    def gain(self) -> float:
        return self.captured / self.expected


@dataclass(frozen=True)
class Advice:
    """What `advise` found; `left_out` names layers whose matrix is zero."""

    update: str
    families: Mapping[str, Family]
    scores: tuple[Score, ...]
    left_out: tuple[str, ...]

    @property
    def totals(self) -> tuple[Total, ...]:
        """The families, the highest gain first."""
        totals = (self._total(family) for family in self.families)
        return tuple(sorted(totals, key=lambda total: total.gain, reverse=True))

    def _total(self, family: str) -> Total:
        scores = [score for score in self.scores if score.family == family]
        weights = [score.norm**2 for score in scores]

        def mean(values: Iterable[float]) -> float:
            return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

        return Total(
            family,
            *self.families[family],
            parameters=sum(score.parameters for score in scores),
            captured=mean(score.captured for score in scores),
            expected=mean(score.expected for score in scores),
            captured_by_rank=mean(score.captured_by_rank for score in scores),
        )

    @property
    def recommendation(self) -> str:
        """One sentence: the family with the highest gain and how to ask for it."""
        best = self.totals[0]
        return (
            f"{best.family} stands out most: {best.parameters:,} parameters capture {100 * best.captured:.2f} % of the "
            f"squared {self.update}, {best.gain:.1f} times what they would of random matrices; ask for it with "
            f"SurmConfig(structure={best.structure!r}, structure_options={dict(best.options)!r})."
        )

    def to_json(self) -> str:
        """Everything above as JSON."""
        content = {
            "update": self.update,
            "recommendation": self.recommendation,
            "totals": [asdict(total) | {"gain": total.gain} for total in self.totals],
            "scores": [asdict(score) | {"gain": score.gain} for score in self.scores],
            "left_out": self.left_out,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def advise(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    structures: Sequence[str] | Mapping[str, Family] = EXACT,
    target_modules: Sequence[str] | None = None,
    memory_limit: int = 2**30,
    update: str = "gradient",
    learning_rate: float = 1e-4,
) -> Advice:
    """Project what the loss asks of each weight on each family of structures, before any training.

    For a target weight (m, n), G is the sum of its gradients over the batches, in float32, with the model as it is and
    in evaluation mode; or, with `update="finetune"`, the change after one AdamW step a batch of all parameters. A
    fused query-key-value weight counts as three. The captured share 1 - ||G - P(G)||^2 / ||G||^2, P(G) the nearest
    member (paper appendix A.6), is the squared cosine between G and the family's best direction: the part of the
    steepest descent's first-order gain that a step inside the family keeps. It says nothing of later steps, of
    curvature, or of how a factored parametrisation moves inside its family.

    The model comes back as it was: parameters, `.grad`, `requires_grad` and modes.

    Args:
        model: any module; its `nn.Linear` layers can be targets.
        batches: what is iterated once for each group of layers: a list or a loader, not an iterator.
        loss_fn: (model, batch) -> scalar loss.
        structures: names of `FAMILIES`, or own names with (structure, options).
        target_modules: endings of layer names; default: the query, key and value projections of known models.
        memory_limit: bytes for the sums and the gradients of a group of layers (at least one layer is taken). A
            finetune needs a copy of the model and Adam's two moments instead.
        learning_rate: of the finetune.

    Raises:
        ValueError: one sentence, for an unknown name, a model without targets, a loss that is no scalar or does not
            depend on them, or options that do not fit a layer.

    Cost: a pass over the batches for each group, then one projection for each layer and family.
    """
    if update not in UPDATES:
        raise ValueError(f"update={update!r}: choose one of {', '.join(UPDATES)}.")
    if isinstance(batches, Iterator):
        raise ValueError("batches is an iterator, which can be read once only: give a list or a loader.")
    families = _families(structures)
    layers = _target_layers(model, target_modules)
    source = (
        _gradient_sums(model, batches, loss_fn, layers, memory_limit)
        if update == "gradient"
        else _changes(model, batches, loss_fn, layers, learning_rate)
    )
    scores: list[Score] = []
    left_out: list[str] = []
    with _as_it_was(model):
        for layer, matrix in source:
            for name, part in _parts(layer, layers[layer], matrix):
                if part.norm() == 0:
                    left_out.append(name)
                else:
                    scores += _scores(name, part, families)
    if not scores:
        raise ValueError(f"{_NO_GRADIENT}, and give at least one batch.")
    return Advice(update, families, tuple(scores), tuple(left_out))


# --- what is asked ---------------------------------------------------------------------------------------------------


def _families(structures: Sequence[str] | Mapping[str, Family]) -> dict[str, Family]:
    if isinstance(structures, Mapping):
        return dict(structures)
    unknown = [name for name in structures if name not in FAMILIES]
    if unknown or not structures:
        raise ValueError(f"structures={list(structures)}: choose one or more of {', '.join(FAMILIES)}.")
    return {name: FAMILIES[name] for name in structures}


def _target_layers(model: nn.Module, target_modules: Sequence[str] | None) -> dict[str, nn.Linear]:
    endings = projection_names(model) if target_modules is None else target_modules
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{ending}") for ending in endings)
    }
    if not layers:
        raise ValueError(f"target_modules={list(endings)}: {type(model).__name__} has no such nn.Linear.")
    return layers


def _parts(name: str, layer: nn.Linear, matrix: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The matrix, or its query, key and value rows where the layer is fused."""
    sizes = fused_parts(name, layer)
    if not sizes:
        yield name, matrix
        return
    for part, rows in zip(sizes, torch.split(matrix, list(sizes.values())), strict=True):
        yield f"{name}.{part}", rows


# --- what the loss asks of the weights -------------------------------------------------------------------------------


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; modes and `requires_grad` are restored on the way out."""
    modes = {module: module.training for module in model.modules()}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, wanted in trained.items():
            parameter.requires_grad_(wanted)


def _groups(layers: Mapping[str, nn.Linear], memory_limit: int) -> Iterator[dict[str, Tensor]]:
    """Layers in order, as many at a time as their float32 sums and their gradients fit."""
    group: dict[str, Tensor] = {}
    used = 0
    for name, layer in layers.items():
        size = layer.weight.numel() * (torch.float32.itemsize + layer.weight.element_size())
        if group and used + size > memory_limit:
            yield group
            group, used = {}, 0
        group[name] = layer.weight
        used += size
    yield group


def _gradient_sums(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    layers: Mapping[str, nn.Linear],
    memory_limit: int,
) -> Iterator[tuple[str, Tensor]]:
    for group in _groups(layers, memory_limit):
        model.requires_grad_(False)
        for weight in group.values():
            weight.requires_grad_(True)
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in group.values()]
        for batch in batches:
            loss = _loss(model, batch, loss_fn)
            gradients = torch.autograd.grad(loss, list(group.values()), allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient)
        yield from zip(group, sums, strict=True)


def _changes(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    layers: Mapping[str, nn.Linear],
    learning_rate: float,
) -> Iterator[tuple[str, Tensor]]:
    trained = copy.deepcopy(model).requires_grad_(True)
    optimiser = torch.optim.AdamW(trained.parameters(), lr=learning_rate, weight_decay=0.0)
    for batch in batches:
        optimiser.zero_grad()
        _loss(trained, batch, loss_fn).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for name, layer in layers.items():
        after = trained.get_submodule(name).get_parameter("weight")
        yield name, (after.detach().float() - layer.weight.detach().float())


def _loss(model: nn.Module, batch: Any, loss_fn: Callable[[nn.Module, Any], Tensor]) -> Tensor:
    with torch.enable_grad():
        loss = loss_fn(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn gives {given}: return the loss of the batch as a tensor of one element.")
    if not loss.requires_grad:
        raise ValueError(f"{_NO_GRADIENT}.")
    return loss


# --- what a family captures ------------------------------------------------------------------------------------------


def _scores(layer: str, matrix: Tensor, families: Mapping[str, Family]) -> Iterator[Score]:
    matrix = matrix.detach().double()
    m, n = matrix.shape
    gram = matrix @ matrix.T if m <= n else matrix.T @ matrix
    energy = torch.linalg.eigvalsh(gram).flip(0)  # the squared singular values: shares need no SVD
    for name, (structure, options) in families.items():
        parameters = structure_class(structure).num_parameters(m, n, **options)
        rank = max(1, round(parameters / (m + n)))
        yield Score(
            layer,
            name,
            (m, n),
            norm=matrix.norm().item(),
            parameters=parameters,
            captured=_captured(matrix, structure, options),
            expected=_expected(structure, json.dumps(dict(options)), m, n),
            rank=rank,
            captured_by_rank=(energy[:rank].sum() / energy.sum()).item(),
        )


@torch.no_grad()
def _captured(matrix: Tensor, structure: str, options: Mapping[str, Any]) -> float:
    nearest = structure_class(structure).nearest(matrix, **options).dense()
    return 1 - float((matrix - nearest).norm() / matrix.norm()) ** 2


@cache
def _expected(structure: str, options: str, m: int, n: int) -> float:
    """The share of a Gaussian matrix: d / (m n) for a linear space of dimension d, else a mean over draws."""
    chosen = json.loads(options)
    member = structure_class(structure)(m, n, device="meta", **chosen)
    if isinstance(member, ConstantDiagonals) and member.is_linear():
        return member.generator_size / (m * n)
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randn(m, n, generator=generator, dtype=torch.float64) for _ in range(RANDOM_DRAWS))
    return sum(_captured(draw, structure, chosen) for draw in draws) / RANDOM_DRAWS
