"""What every method is: how it makes a backbone trainable, and what it does while that trains."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor, nn

from surm.methods.schema import StructureConfig
from surm.models.backbone import Backbone
from surm.structures.options import Option
from surm.tuners.bypass import refuse_bypassed
from surm.tuners.targets import projection_names

FORMS = ("weight", "adapter")
Settings = Mapping[str, Any]

_OTHER_FORM = {
    "weight": "this method follows a layer; choose placement=adapter_houlsby or adapter_pfeiffer.",
    "adapter": "this method adds to weights; choose placement=weight_qkv or another weight form.",
}


class Method:
    """One way to fine-tune a backbone: facts by class, settings by object, hooks that the training loop calls.

    An object serves one model. The loop calls, in this order:

    1. `apply`, before the optimiser is made of `trained_parameters`;
    2. `load_state_dict`, if the run goes on from a checkpoint, before the parameters get their values back;
    3. in each optimiser step: `extra_loss` with every forward pass, `after_backward`, `after_step`;
    4. `state_dict`, whenever a checkpoint is written, which is always between two steps;
    5. `finish`, after the last step and before the last evaluation; what is evaluated then is what is saved.

    With several processes each one calls every hook, on equal parameters and gradients.

    Args:
        settings: `asked.structure` of a run, as `resolve` makes it.
    """

    name: ClassVar[str]
    """In commands and records; classes that serve many names have none."""

    forms: ClassVar[tuple[str, ...]] = FORMS
    """Of a placement, those that the method has."""

    uses_placement: ClassVar[bool] = True
    """Whether `placement` matters: not where the method trains what the backbone has."""

    usual_rate: ClassVar[float] = 3e-3
    """The learning rate where nothing was tuned, at which a search starts."""

    middle_rate: ClassVar[float] = 1.6e-3
    """The middle of the first values of a search for one run length (`search.by=run`)."""

    trains_matrices: ClassVar[bool] = False
    """Whether the backbone's own matrices are trained, which costs a third pass."""

    trains_head_alone: ClassVar[bool] = False
    """Whether no gradient is needed below the head, which saves a pass."""

    recomputes: ClassVar[bool] = True
    """Whether a forward pass may be computed again in the backward one (`trainer.gradient_checkpointing`)."""

    may_not_fit: ClassVar[bool] = False
    """Whether `apply` may refuse a model or a run's length; then it is tried on the model's skeleton before weights."""

    options: ClassVar[Mapping[str, Option]] = {}
    """The settings with their defaults and ranges; each is a key of `conf/structure`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # --- before a model is loaded ------------------------------------------------------------------------------------

    @classmethod
    def resolve(cls, structure: StructureConfig, form: str, width: int | None) -> dict[str, Any]:
        """The settings that the method uses, every default spelled out; they are part of a run's identity.

        Args:
            structure: the configuration's `structure` node.
            form: of the placement, "weight" or "adapter".
            width: of the backbone's square projections, or None where it is not known before loading.

        Raises:
            TypeError, ValueError: one sentence, for a value that the method cannot take.
        """
        return {"name": structure.name, **resolve_options(cls.options, structure)}

    @classmethod
    def check_form(cls, form: str) -> None:
        """Raises `ValueError`, one sentence, for a form that the method does not have."""
        if form not in cls.forms:
            raise ValueError(_OTHER_FORM[form])

    @classmethod
    def ignored(cls, structure: StructureConfig, form: str) -> list[str]:
        """The settings that were given but that the method does not use, as a command writes them."""
        used, default = cls.resolve(structure, form, None), type(structure)()
        given = ((key, value) for key, value in vars(structure).items() if value != getattr(default, key))
        return [f"structure.{key}={value}" for key, value in given if key not in used]

    def largest_rank(self, m: int, n: int) -> int:
        """The rank that updates of an m x n weight have in general."""
        return min(m, n)

    # --- a model -----------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, module: nn.Module) -> nn.Module:
        """The backbone's module as adapters are put into it, for training or for loading them; changed in place."""
        return module

    def apply(self, backbone: Backbone, placement: Settings | None = None, steps: int = 1) -> nn.Module:
        """Freeze the backbone and add what the method trains, beside the task head.

        Args:
            backbone: as loaded; changed in place.
            placement: `asked.placement` of a run; None for methods to which no placement matters.
            steps: of the whole run, for methods with a schedule.

        Raises:
            ValueError: one sentence, where the method does not fit the backbone.
        """
        self.head = backbone.head
        if self.uses_placement and placement and placement["form"] == "weight":
            endings = tuple(f".{ending}" for ending in projection_names(backbone.module, placement["parts"]))
            layers = ((name, layer) for name, layer in backbone.module.named_modules() if isinstance(layer, nn.Linear))
            targets = [name for name, _ in layers if name.endswith(endings)]
            refuse_bypassed(backbone.module, targets, lambda: backbone.module(**backbone.example()))
        self.module = self._apply(backbone, placement or {}, steps)
        self._trained = frozenset(self._names_of_trained())
        self._peak = self._count(self.trained_parameters())
        return self.module

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        """What `apply` does; afterwards what is trained in the first step, and nothing else, requires gradients."""
        raise NotImplementedError

    def _names_of_trained(self) -> Iterable[str]:
        """Names of parameters that are trained in any step; asked once, at the end of `apply`.

        To be overridden by a method that trains some of them in a part of the run alone.
        """
        return (name for name, parameter in self.module.named_parameters() if parameter.requires_grad)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that are trained in any step: the optimiser's, and a checkpoint's."""
        return ((name, parameter) for name, parameter in self.module.named_parameters() if name in self._trained)

    def in_head(self, parameter_name: str) -> bool:
        """Whether a parameter belongs to the task head."""
        return is_head(parameter_name, self.head)

    def is_added(self, parameter_name: str) -> bool:
        """Whether a parameter belongs to an added update, which weight decay leaves alone by default."""
        return any(prefix in parameter_name for prefix in set(PEFT_TYPE_TO_PREFIX_MAPPING.values()))

    def count(self) -> tuple[int, int]:
        """Parameters that are trained now, without the task head, and those of the head."""
        return self._count((name, p) for name, p in self.module.named_parameters() if p.requires_grad)

    def count_at_peak(self) -> int:
        """The most parameters, without the head, that were trained at any time: here all of `trained_parameters`."""
        return self._peak[0]

    def _count(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> tuple[int, int]:
        counts = [0, 0]
        for name, parameter in parameters:
            counts[self.in_head(name)] += parameter.numel()
        return counts[0], counts[1]

    # --- while it trains ---------------------------------------------------------------------------------------------

    def extra_loss(self) -> Tensor | None:
        """A scalar to add to the task's loss of each forward pass, in training alone."""
        return None

    def after_backward(self, step: int) -> None:
        """Called when the gradients of a step (from 0) are complete: accumulated and unscaled, not yet clipped."""

    def after_step(self, step: int) -> None:
        """Called when the optimiser has moved the parameters in a step (from 0); its gradients are still there."""

    def finish(self) -> None:
        """Called once, after the last step: to compact or freeze, for instance."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the trained parameters: tensors on any device, by the method's own names."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave, on the CPU; the optimiser exists, the parameters get their values next.

        Raises:
            ValueError: what does not fit, in a few words; nothing is then changed.
        """
        if state:
            raise ValueError(f"it holds {next(iter(state))!r} of a method, and {type(self).__name__} keeps nothing")


def is_head(parameter_name: str, head: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to the task head, also inside PEFT's wrapper."""
    return any(f".{name}." in f".{parameter_name}" for name in head)


# --- settings --------------------------------------------------------------------------------------------------------


def number(default: float, low: float = -math.inf, below: float = math.inf) -> Option:
    """A number from `low` to below `below`; without either, a finite one."""
    bounded = math.isfinite(low) or math.isfinite(below)
    rule = f"a number from {low} to below {below}" if bounded else "a finite number"
    return Option(float, default, lambda value: low <= value < below and math.isfinite(value), rule)


ALPHA = number(1.0)
DROPOUT = number(0.0, low=0.0, below=1.0)


def resolve_options(options: Mapping[str, Option], structure: StructureConfig) -> dict[str, Any]:
    """The value of each option: what was given, else its default, which is None where the method derives it.

    Raises:
        ValueError: one sentence, for a value outside its range.
    """
    given = {key: getattr(structure, key) for key in options}
    resolved = {key: option.default if given[key] is None else given[key] for key, option in options.items()}
    for key, value in resolved.items():
        if value is not None and not options[key].accepts(value):
            raise ValueError(f"{key}={value} is not possible: give {options[key].rule}.")
    return resolved
