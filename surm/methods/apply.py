"""How a pretrained backbone is made trainable: a structure at its place, or a method to compare with."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import PeftType
from torch import Tensor, nn

from surm.methods.schema import StructureConfig
from surm.models.backbone import Backbone
from surm.models.fused import split_fused_projections
from surm.shared.registry import look_up
from surm.structures import STRUCTURES, option_names, structure_class
from surm.tuners import SurmConfig
from surm.tuners.bypass import refuse_bypassed
from surm.tuners.targets import FUSED_PARTS, projection_names

FORMS = ("weight", "adapter")
PEFT = "peft_"  # of the names of PEFT's own methods
PEFT_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LORA", {"use_dora": True})
}  # methods that PEFT keeps as a switch of another

Settings = Mapping[str, Any]


# --- the methods ----------------------------------------------------------------------------------------------------


def _structured(backbone: Backbone, settings: Settings, placement: Settings, steps: int) -> nn.Module:
    name = settings["name"]
    options = ("size",) if name == "bottleneck" else option_names(name)
    common: dict[str, Any] = {
        "structure": name,
        "structure_options": {option: settings[option] for option in options},
        "dropout": settings["dropout"],
        "modules_to_save": list(backbone.head),
        "init_weights": True if settings.get("init_weights", "default") == "default" else settings["init_weights"],
    }
    if placement["form"] == "adapter":
        config = SurmConfig(
            form="adapter",
            target_modules=placement["sites"],
            adapter_bias=placement["adapter_bias"],
            adapter_activation=placement["activation"],
            adapter_position=placement["position"],
            **common,
        )
    else:
        fused = [part for part in placement["parts"] if part in FUSED_PARTS]
        config = SurmConfig(
            target_modules=projection_names(backbone.module, placement["parts"]),
            fused_parts=fused or None,
            alpha=settings["alpha"],
            **common,
        )
    return get_peft_model(backbone.module, config)


def _lora(backbone: Backbone, settings: Settings, placement: Settings, steps: int) -> nn.Module:
    arguments = {"r": settings["rank"], "lora_alpha": settings["alpha"], "lora_dropout": settings["dropout"]}
    return _with_peft(backbone, LoraConfig, arguments, placement)


def _lora_fa(backbone: Backbone, settings: Settings, placement: Settings, steps: int) -> nn.Module:
    module = _lora(backbone, settings, placement, steps)
    for name, parameter in module.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    return module


def _peft(backbone: Backbone, settings: Settings, placement: Settings, steps: int) -> nn.Module:
    kind, arguments = _peft_method(settings["name"], settings["arguments"])
    if kind is PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.ADALORA]:
        # Its budget falls from init_r to target_r between these steps; the shares are ours where none are given.
        arguments = {"total_step": steps, "tinit": steps // 10, "tfinal": steps // 3, **arguments}
    return _with_peft(backbone, kind, arguments, placement)


def _with_peft(
    backbone: Backbone, kind: Callable[..., PeftConfig], arguments: Settings, placement: Settings
) -> nn.Module:
    module = split_fused_projections(backbone.module)
    targets = projection_names(module, placement["parts"])
    return get_peft_model(module, kind(target_modules=targets, modules_to_save=list(backbone.head), **arguments))


def _train_only(chosen: Callable[[nn.Module], set[nn.Parameter]]) -> "Apply":
    def apply(backbone: Backbone, settings: Settings, placement: Settings, steps: int) -> nn.Module:
        trained = chosen(backbone.module)
        for name, parameter in backbone.module.named_parameters():
            parameter.requires_grad_(is_head(name, backbone.head) or parameter in trained)
        return backbone.module

    return apply


def _biases(module: nn.Module) -> set[nn.Parameter]:
    return {parameter for name, parameter in module.named_parameters() if name.endswith(".bias")}


def _norms(module: nn.Module) -> set[nn.Parameter]:
    return {p for layer in module.modules() if isinstance(layer, nn.LayerNorm) for p in layer.parameters()}


def _attention(module: nn.Module) -> set[nn.Parameter]:
    return {parameter for _, layer in _projections(module, ["q", "k", "v", "o"]) for parameter in layer.parameters()}


def _projections(module: nn.Module, parts: list[str]) -> Iterator[tuple[str, nn.Linear]]:
    endings = tuple(f".{ending}" for ending in projection_names(module, parts))
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear))
    return ((name, layer) for name, layer in layers if name.endswith(endings))


Apply = Callable[[Backbone, Settings, Settings, int], nn.Module]

IN_WEIGHTS: dict[str, Apply] = {"lora": _lora, "lora_fa": _lora_fa}
"""Baselines that add to weights: they have a placement, in weight form alone."""

IN_PLACE: dict[str, Apply] = {
    "bitfit": _train_only(_biases),
    "layernorm_tuning": _train_only(_norms),
    "attention_tuning": _train_only(_attention),
    "linear_probe": _train_only(lambda module: set()),
    "full": _train_only(lambda module: set(module.parameters())),
}
"""Baselines that train what the backbone has; no placement matters to them."""


def apply_method(
    backbone: Backbone, settings: Settings, placement: Settings | None = None, steps: int = 1
) -> nn.Module:
    """Freeze the backbone and add what the method trains, beside the task head.

    Args:
        backbone: as loaded; changed in place.
        settings: `asked.structure` of a run, from `method_settings`.
        placement: `asked.placement` of a run; None for baselines that train what the backbone has.
        steps: of the whole run, which AdaLoRA's schedule needs.

    Raises:
        ValueError: one sentence, where the method does not fit the backbone.
    """
    name = settings["name"]
    apply = _peft if is_peft_method(name) else {**IN_WEIGHTS, **IN_PLACE}.get(name, _structured)
    if uses_placement(name) and placement and placement["form"] == "weight":
        targets = [name for name, _ in _projections(backbone.module, placement["parts"])]
        refuse_bypassed(backbone.module, targets, lambda: backbone.module(**backbone.example()))
    return apply(backbone, settings, placement or {}, steps)


def extra_loss(module: nn.Module) -> Tensor | None:
    """What a method adds to the task's loss: AdaLoRA's departure from orthogonal factors (arXiv 2303.10512, eq. 4).

    orth_reg_weight times the mean over factors of |P P^T - I|_F, as PEFT computes it where the model has a loss itself.
    """
    weight = getattr(module.active_peft_config, "orth_reg_weight", 0.0) if isinstance(module, PeftModel) else 0.0
    if not weight:
        return None
    distances = []
    for name, factor in module.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = factor @ factor.mT if ".lora_A." in name else factor.mT @ factor
            distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
    return weight * torch.stack(distances).mean()


def after_step(module: nn.Module, step: int) -> None:
    """What a method does after the optimiser's step (from 0), before gradients are cleared: AdaLoRA moves its ranks."""
    if has_hidden_state(module):
        cast(Any, module.base_model).update_and_allocate(step)


def has_hidden_state(module: nn.Module) -> bool:
    """Whether training keeps state outside parameters and optimiser, so that a checkpoint would not hold all of it."""
    return isinstance(module, PeftModel) and hasattr(module.base_model, "update_and_allocate")


def is_head(parameter_name: str, head: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to the task head, also inside PEFT's wrapper."""
    return any(f".{name}." in f".{parameter_name}" for name in head)


def is_structure(parameter_name: str) -> bool:
    """Whether a parameter belongs to an added update (SURM's or PEFT's), which weight decay leaves alone by default."""
    return any(prefix in parameter_name for prefix in set(PEFT_TYPE_TO_PREFIX_MAPPING.values()))


# --- their settings -------------------------------------------------------------------------------------------------


def method_names() -> tuple[str, ...]:
    return (*STRUCTURES, "bottleneck", *IN_WEIGHTS, *IN_PLACE)


def is_peft_method(name: str) -> bool:
    """Whether the name stands for one of PEFT's own methods, `peft_<method>`."""
    return name.startswith(PEFT)


def uses_placement(name: str) -> bool:
    """Whether `placement` matters: not for methods that train what the backbone already has."""
    return name not in IN_PLACE


def check_form(name: str, form: str) -> None:
    """Refuse, in one sentence (`ValueError`), a method in a form that it does not have."""
    if name == "bottleneck" and form != "adapter":
        raise ValueError("a bottleneck follows a layer; choose placement=adapter_houlsby or adapter_pfeiffer.")
    if form == "adapter" and (name in IN_WEIGHTS or is_peft_method(name)):
        raise ValueError("this method adds to weights; choose placement=weight_qkv or another weight form.")


def method_settings(structure: StructureConfig, form: str, width: int | None) -> dict[str, Any]:
    """The settings that the method uses, every default spelled out; they are part of a run's identity.

    Args:
        structure: the configuration's `structure` node.
        form: of the placement, "weight" or "adapter".
        width: of the backbone's square projections, or None where it is not known before loading.

    Raises:
        TypeError, ValueError: one sentence, for an option the method cannot take.
    """
    name = structure.name
    if name in IN_PLACE:
        return {"name": name}
    if is_peft_method(name):
        arguments = {key: width if value == "width" else value for key, value in structure.arguments.items()}
        _peft_method(name, arguments)
        return {"name": name, "arguments": arguments}
    if name in IN_WEIGHTS:
        rank = _count("rank", structure.rank, default=1)
        return {"name": name, "rank": rank, "alpha": structure.alpha, "dropout": structure.dropout}
    if name == "bottleneck":
        return {"name": name, "size": _count("size", structure.size, default=16), "dropout": structure.dropout}
    given = {key: getattr(structure, key) for key in option_names(name) if getattr(structure, key) is not None}
    options = structure_class(name).check_options(width or 768, width or 768, **given)
    return {
        "name": name,
        **options,
        **({"alpha": structure.alpha} if form == "weight" else {}),
        "dropout": structure.dropout,
        "init_weights": structure.init_weights,
    }


def _count(name: str, value: int | None, *, default: int) -> int:
    value = default if value is None else value
    if value < 1:
        raise ValueError(f"{name}={value} is not possible: give a whole number of at least 1.")
    return value


def _peft_method(name: str, arguments: Settings) -> tuple[type[PeftConfig], dict[str, Any]]:
    """The configuration class of `peft_<method>` and the arguments for it; ValueError for what PEFT does not have."""
    own: dict[str, tuple[str, dict[str, Any]]] = {kind.lower(): (kind, {}) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    del own["surm"]
    kind, switches = look_up(own | PEFT_VARIANTS, name.removeprefix(PEFT), "method of PEFT")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = inspect.signature(config_class).parameters
    for argument in arguments:
        if argument not in known or argument in ("target_modules", "modules_to_save"):
            raise ValueError(f"arguments.{argument}: {config_class.__name__} of PEFT takes no such argument from here.")
    if "target_modules" not in known or "modules_to_save" not in known:
        raise ValueError(f"{config_class.__name__} of PEFT does not adapt chosen layers beside a trained head.")
    return config_class, {**switches, **arguments}


def ignored_settings(structure: StructureConfig, form: str) -> list[str]:
    """The settings that were given but that the method does not use."""
    used = method_settings(structure, form, None)
    default = type(structure)()
    return [
        f"structure.{key}={value}"
        for key, value in vars(structure).items()
        if key not in used and value != getattr(default, key)
    ]


def count_trainable(module: nn.Module, head: tuple[str, ...]) -> tuple[int, int]:
    """Trainable parameters without the task head, and those of the head."""
    trainable = [(name, parameter.numel()) for name, parameter in trainable_parameters(module)]
    in_head = sum(count for name, count in trainable if is_head(name, head))
    return sum(count for _, count in trainable) - in_head, in_head


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
