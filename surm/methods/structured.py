"""Structured matrices and the classic bottleneck, by this project's own tuner."""

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
from surm.tuners.targets import FUSED_PARTS, projection_names


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
    usual_rate = 1e-2
    middle_rate = 2.5e-2

    def largest_rank(self, m: int, n: int) -> int:
        return min(m, n, int(self.settings["rank"]))


class Bottleneck(OfTuner):
    """The classic adapter: down to `size`, an activation, up (Houlsby et al. 2019)."""

    name = "bottleneck"
    forms = ("adapter",)
    usual_rate = 1e-3
    options: ClassVar[Mapping[str, Option]] = {"size": replace(count(), default=16), "dropout": DROPOUT}

    def _structure_options(self) -> dict[str, Any]:
        return {"size": self.settings["size"]}
