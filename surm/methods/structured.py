"""Structured matrices and the classic bottleneck, by this project's own tuner."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from peft import get_peft_model
from torch import nn

from surm.methods.base import ALPHA, DROPOUT, Method, Settings, resolve_options
from surm.methods.schema import StructureConfig
from surm.models.backbone import Backbone
from surm.structures import option_names, structure_class
from surm.structures.options import Option, count, one_of
from surm.tuners import SurmConfig
from surm.tuners.adapter import compacter_size
from surm.tuners.checks import ADAPTERS
from surm.tuners.targets import FUSED_PARTS, adapter_sites, projection_names


class OfTuner(Method):
    """A method of `surm.tuners`: an update of weights, or a module behind a block."""

    def _structure_options(self) -> dict[str, Any]:
        """`structure_options` of `SurmConfig`."""
        raise NotImplementedError

    def _structure(self) -> str:
        """`structure` of `SurmConfig`."""
        return str(self.settings["name"])

    def _factor(self) -> float:
        """`alpha` of `SurmConfig`, in weight form."""
        return float(self.settings["alpha"])

    def _sites(self, module: nn.Module, placement: Settings) -> str | list[str]:
        """`target_modules` of `SurmConfig` in adapter form."""
        sites: str = placement["sites"]
        return sites

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        settings = self.settings
        start = settings.get("init_weights", "default")
        common: dict[str, Any] = {
            "structure": self._structure(),
            "structure_options": self._structure_options(),
            "dropout": settings["dropout"],
            "modules_to_save": list(backbone.head),
            "init_weights": True if start == "default" else start,
        }
        if placement["form"] == "adapter":
            config = SurmConfig(
                form="adapter",
                target_modules=self._sites(backbone.module, placement),
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
                alpha=self._factor(),
                **common,
            )
        return get_peft_model(backbone.module, config)


class Structured(OfTuner):
    """A structured matrix S, or a sum of several: W x + alpha S x (paper section 4), or X + act(S X) + b (5.2).

    It is called by its structure's name, or by several joined by "+".
    """

    options: ClassVar[Mapping[str, Option]] = {
        "alpha": ALPHA,
        "dropout": DROPOUT,
        "init_weights": one_of("default", "authors"),
    }
    """Beside those of the structure."""

    @classmethod
    def resolve(cls, structure: StructureConfig, form: str, width: int | None) -> dict[str, Any]:
        own = {key: getattr(structure, key) for key in option_names(structure.name)}
        # Where the width is not known yet, options are checked against that of ViT-B and BERT-base.
        kind = structure_class(structure.name)
        resolved = kind.check_options(width or 768, width or 768, **own)
        if structure.init_weights == "authors":
            kind.check_start("authors")
        used = {key: option for key, option in cls.options.items() if key != "alpha" or form == "weight"}
        return {"name": structure.name, **resolved, **resolve_options(used, structure)}

    def largest_rank(self, m: int, n: int) -> int:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            member = structure_class(self.settings["name"])(m, n, dtype=torch.float64, **self._structure_options())
            member.reset_parameters(init_weights=False)
            for part in member.summands():
                if part.needs_weight:
                    part.attach(torch.randn(m, n, dtype=torch.float64))
        return int(torch.linalg.matrix_rank(member.dense()))

    def _structure_options(self) -> dict[str, Any]:
        return {option: self.settings[option] for option in option_names(self.settings["name"])}


class OfWeight(Structured):
    """A structure made from the weight that it updates, or a sum with one."""

    forms = ("weight",)


class LoraXS(OfWeight):
    """LoRA-XS, which is trained at larger rates than other structures: its authors' are 3 to 30 times LoRA's."""

    name = "lora_xs"
    usual_rate = 1e-2
    middle_rate = 1e-2  # of 0.004, 0.01, 0.025 and 0.06 the best for 100 steps on valence


class SharedStructured(Structured):
    """A structure whose matrices share tensors, each of which many layers move, or which are products of many.

    Its authors train it at rates of 3 to 30 times LoRA's.
    """

    forms = ("weight",)
    may_not_fit = True
    usual_rate = 1e-2
    middle_rate = 2.5e-2

    def largest_rank(self, m: int, n: int) -> int:
        return min(m, n, int(self.settings["rank"]))


class Bottleneck(OfTuner):
    """The classic adapter: down to `size`, an activation, up (Houlsby et al. 2019)."""

    name = "bottleneck"
    forms = ("adapter",)
    usual_rate = 1e-3
    options: ClassVar[Mapping[str, Option]] = {**ADAPTERS["bottleneck"], "dropout": DROPOUT}

    def _structure_options(self) -> dict[str, Any]:
        return {"size": self.settings["size"]}


class Compacter(OfTuner):
    """Compacter (Mahabadi et al. 2021): a bottleneck of sums of Kronecker products, whose small factors all share.

    With `placement=adapter_pfeiffer` it is the authors' Compacter++.
    """

    name = "compacter"
    forms = ("adapter",)
    options: ClassVar[Mapping[str, Option]] = {**ADAPTERS["compacter"], "dropout": DROPOUT}

    @classmethod
    def resolve(cls, structure: StructureConfig, form: str, width: int | None) -> dict[str, Any]:
        resolved = super().resolve(structure, form, width)
        # Where the width is not known yet, it is that of ViT-B and BERT-base.
        width, terms = width or 768, resolved["terms"]
        resolved["size"] = resolved["size"] or compacter_size(width, terms)
        if width % terms or resolved["size"] % terms:
            raise ValueError(
                f"terms={terms} is not possible: give a divisor of the model's width {width} and of "
                f"size={resolved['size']}."
            )
        return resolved

    def _structure_options(self) -> dict[str, Any]:
        return {name: self.settings[name] for name in ADAPTERS["compacter"]}


class AdapterDrop(OfTuner):
    """AdapterDrop (Rücklé et al. 2021): adapters in all blocks but the lowest, which no gradient then needs to reach.

    The adapter is `of`, the bottleneck, Compacter or a structure, with the options it has by itself.
    """

    name = "adapter_drop"
    forms = ("adapter",)
    may_not_fit = True
    usual_rate = 1e-3
    options: ClassVar[Mapping[str, Option]] = {
        "of": Option(str, "bottleneck", lambda value: isinstance(value, str), "bottleneck, compacter or a structure"),
        "dropped_layers": count(5),
    }

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.adapter = _adapter_class(settings["of"])({**settings, "name": settings["of"]})

    @classmethod
    def resolve(cls, structure: StructureConfig, form: str, width: int | None) -> dict[str, Any]:
        own = resolve_options(cls.options, structure)
        adapter = _adapter_class(own["of"]).resolve(replace(structure, name=own["of"]), form, width)
        return {**adapter, **super().resolve(structure, form, width)}

    def _structure(self) -> str:
        return self.adapter._structure()

    def _structure_options(self) -> dict[str, Any]:
        return self.adapter._structure_options()

    def _sites(self, module: nn.Module, placement: Settings) -> list[str]:
        endings = tuple(f".{site}" for site in adapter_sites(module, placement["sites"], placement["position"]))
        of_block: dict[str, list[str]] = {}
        for name, _ in module.named_modules():
            if f".{name}".endswith(endings):
                block = re.match(r"(?:.*\.)?\d+(?=\.)", name)
                of_block.setdefault(block[0] if block else "", []).append(name)
        dropped = self.settings["dropped_layers"]
        if dropped >= len(of_block):
            raise ValueError(
                f"dropped_layers={dropped} leaves no adapter in {len(of_block)} blocks: give at most "
                f"{len(of_block) - 1}."
            )
        return [name for names in list(of_block.values())[dropped:] for name in names]


def _adapter_class(name: str) -> type[OfTuner]:
    """The class of what `AdapterDrop` leaves out.

    Raises:
        ValueError: one sentence, for a name of nothing that follows a layer.
    """
    if name in (Bottleneck.name, Compacter.name):
        return Bottleneck if name == Bottleneck.name else Compacter
    kind = structure_class(name)
    if kind.needs_weight or kind.shares:
        raise ValueError(
            f"of={name} is not possible: it adds to weights; give bottleneck, compacter or another structure."
        )
    return Structured
