"""How a pretrained backbone is made trainable: a structure in its weights, or a method to compare with."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, get_peft_model
from torch import nn

from surm.models.backbone import Backbone
from surm.models.fused import split_fused_projections
from surm.structures import STRUCTURES, option_names, structure_class
from surm.tuners import SurmConfig
from surm.tuners.targets import projection_names

if TYPE_CHECKING:
    from surm.config import RunConfig, StructureConfig

OPTIONS = ("parametrization", "symmetric", "factors", "factor_shape", "terms", "rank")


# --- the methods ----------------------------------------------------------------------------------------------------


def _structured(backbone: Backbone, settings: dict[str, Any], parts: list[str]) -> nn.Module:
    config = SurmConfig(
        structure=settings["name"],
        structure_options={name: settings[name] for name in option_names(settings["name"])},
        target_modules=projection_names(backbone.module, parts),
        fused_parts=parts,
        alpha=settings["alpha"],
        dropout=settings["dropout"],
        init_weights=True if settings["init_weights"] == "default" else settings["init_weights"],
        modules_to_save=list(backbone.head),
    )
    return get_peft_model(backbone.module, config)


def _lora(backbone: Backbone, settings: dict[str, Any], parts: list[str]) -> nn.Module:
    module = split_fused_projections(backbone.module)
    config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=projection_names(module, parts),
        modules_to_save=list(backbone.head),
    )
    return get_peft_model(module, config)


def _train_only(chosen: Callable[[str], bool]) -> Callable[[Backbone, dict[str, Any], list[str]], nn.Module]:
    def apply(backbone: Backbone, settings: dict[str, Any], parts: list[str]) -> nn.Module:
        for name, parameter in backbone.module.named_parameters():
            parameter.requires_grad_(is_head(name, backbone.head) or chosen(name))
        return backbone.module

    return apply


BASELINES = {
    "lora": _lora,
    "bitfit": _train_only(lambda name: name.endswith(".bias")),
    "linear_probe": _train_only(lambda name: False),
    "full": _train_only(lambda name: True),
}


def apply_method(backbone: Backbone, settings: dict[str, Any], parts: list[str]) -> nn.Module:
    """Freeze the backbone and add what the method trains, beside the task head.

    Args:
        backbone: as loaded; changed in place.
        settings: `asked.structure` of a run, from `method_settings`.
        parts: which of q, k and v are adapted.
    """
    return BASELINES.get(settings["name"], _structured)(backbone, settings, parts)


def is_head(parameter_name: str, head: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to the task head, also inside PEFT's wrapper."""
    return any(f".{name}." in f".{parameter_name}" for name in head)


def is_structure(parameter_name: str) -> bool:
    """Whether a parameter belongs to an added update (SURM's or LoRA's), which weight decay leaves alone by default."""
    return "surm_" in parameter_name or "lora_" in parameter_name


# --- their settings -------------------------------------------------------------------------------------------------


def method_names() -> tuple[str, ...]:
    return (*STRUCTURES, *BASELINES)


def uses_placement(name: str) -> bool:
    """Whether `placement` matters: not for methods that train what the backbone already has."""
    return name == "lora" or name not in BASELINES


def method_settings(structure: "StructureConfig", width: int | None) -> dict[str, Any]:
    """The settings that the method uses, every default spelled out; they are part of a run's identity.

    Args:
        structure: the configuration's `structure` node.
        width: of the backbone's square projections, or None where it is not known before loading.

    Raises:
        ValueError: one sentence, for an option the method cannot take.
    """
    name = structure.name
    if name == "lora":
        rank = 1 if structure.rank is None else structure.rank
        if rank < 1:
            raise ValueError(f"rank={rank} is not a rank: give a whole number of at least 1.")
        return {"name": name, "rank": rank, "alpha": structure.alpha, "dropout": structure.dropout}
    if name in BASELINES:
        return {"name": name}
    given = {key: getattr(structure, key) for key in option_names(name) if getattr(structure, key) is not None}
    options = structure_class(name).check_options(width or 768, width or 768, **given)
    return {
        "name": name,
        **options,
        "alpha": structure.alpha,
        "dropout": structure.dropout,
        "init_weights": structure.init_weights,
    }


def ignored_settings(config: "RunConfig") -> list[str]:
    """The `structure` settings that were given but that the method does not use."""
    used = method_settings(config.structure, None) if config.structure.name in BASELINES else None
    names = (
        set(used)
        if used is not None
        else {"name", "alpha", "dropout", "init_weights", *option_names(config.structure.name)}
    )
    default = type(config.structure)()
    return [
        f"structure.{key}={value}"
        for key, value in vars(config.structure).items()
        if key not in names and value != getattr(default, key)
    ]


def count_trainable(module: nn.Module, head: tuple[str, ...]) -> tuple[int, int]:
    """Trainable parameters without the task head, and those of the head."""
    trainable = [(name, parameter.numel()) for name, parameter in trainable_parameters(module)]
    in_head = sum(count for name, count in trainable if is_head(name, head))
    return sum(count for _, count in trainable) - in_head, in_head


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
