"""Gated low-rank updates whose components an allocator divides among the layers while the run goes on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from surm.methods.base import ALPHA, DROPOUT, Settings, number, resolve_options
from surm.methods.schema import StructureConfig
from surm.methods.structured import OfTuner
from surm.models.backbone import Backbone
from surm.structures.gated import STD
from surm.structures.options import Option, count, one_of
from surm.tuners.allocation import AdaLora, Allocator, DynamicRank, LoraSquared

_TARGET = Option(float, 1.0, lambda value: value > 0, "a number above 0")


class Allocated(OfTuner):
    """W x + (alpha / rank) S x with a gated structure S, from `rank` to `target_rank` components a matrix on average.

    After the last step what was switched off is taken out, so that the adapter is saved and counted without it; the
    run's record has the count at its peak too.
    """

    forms = ("weight",)
    may_not_fit = True
    gated: ClassVar[str] = "gated_low_rank"  # the structure
    allocator_class: ClassVar[type[Allocator]]
    passed: ClassVar[Mapping[str, str]] = {}
    """Options of one allocator alone, and what it calls them."""

    common: ClassVar[Mapping[str, Option]] = {
        "rank": replace(count(), default=2),
        "target_rank": _TARGET,
        "alpha": ALPHA,
        "dropout": DROPOUT,
        "penalty": number(0.1, low=0.0),
        "prune_start": number(0.15, low=0.0, below=1.0),
        "prune_end": number(0.5, low=0.0, below=1.0),
        "prune_every": number(0.002, low=0.0, below=1.0),
        "smoothing": number(0.85, low=0.0, below=1.0),
    }

    @classmethod
    def resolve(cls, structure: StructureConfig, form: str, width: int | None) -> dict[str, Any]:
        settings = {"name": structure.name, **resolve_options(cls.options, structure)}
        if settings["target_rank"] > settings["rank"]:
            raise ValueError(
                f"target_rank={settings['target_rank']:g} is above rank={settings['rank']}, with which a matrix "
                "starts: give less, or a higher rank."
            )
        if settings["prune_start"] >= settings["prune_end"]:
            raise ValueError(
                f"prune_start={settings['prune_start']} is not before prune_end={settings['prune_end']}: give shares "
                "of the run in this order."
            )
        return settings

    def largest_rank(self, m: int, n: int) -> int:
        return min(m, n, int(self.settings["rank"]))

    def _structure(self) -> str:
        return self.gated

    def _structure_options(self) -> dict[str, Any]:
        return {"rank": self.settings["rank"], "std": self.settings.get("std")}

    def _factor(self) -> float:
        return float(self.settings["alpha"] / self.settings["rank"])

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        module = super()._apply(backbone, placement, steps)
        settings = self.settings
        self.allocator = self.allocator_class(
            module,
            steps,
            target=settings["target_rank"],
            start=settings["prune_start"],
            end=settings["prune_end"],
            every=settings["prune_every"],
            smoothing=settings["smoothing"],
            weight=settings["penalty"],
            **{argument: settings[option] for option, argument in self.passed.items()},
        )
        return module

    def extra_loss(self) -> Tensor | None:
        return self.allocator.penalty() if self.settings["penalty"] else None

    def after_step(self, step: int) -> None:
        self.allocator.after_step(step)

    def finish(self) -> None:
        self.module.compact()  # type: ignore[operator]

    def state_dict(self) -> dict[str, Tensor]:
        return self.allocator.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.allocator.load_state_dict(state)


class DynamicDora(Allocated):
    """LoRA of dynamic rank (DoRA, arXiv 2405.17357; not the weight-decomposed method of that name)."""

    name = "dynamic_dora"
    allocator_class = DynamicRank
    options: ClassVar[Mapping[str, Option]] = {
        **Allocated.common,
        "prune_every": number(0.0175, low=0.0, below=1.0),
        "smoothing": number(0.9, low=0.0, below=1.0),
    }


class AllocatedAdaLora(Allocated):
    """AdaLoRA (arXiv 2303.10512) by this project's own allocator; `peft_adalora` is PEFT's."""

    name = "adalora"
    allocator_class = AdaLora
    passed: ClassVar[Mapping[str, str]] = {"squared_penalty": "squared"}
    options: ClassVar[Mapping[str, Option]] = {
        **Allocated.common,
        "std": replace(STD, default=0.02),
        "squared_penalty": one_of(False, True),
    }


class AllocatedLoraSquared(Allocated):
    """LoRA^2 (arXiv 2408.06854): AdaLoRA's allocator inside an outer pair of rank `outer_rank`."""

    name = "lora2"
    gated = "gated_chain"
    allocator_class = LoraSquared
    passed: ClassVar[Mapping[str, str]] = {"cross_penalty": "cross"}
    options: ClassVar[Mapping[str, Option]] = {
        **Allocated.common,
        "rank": replace(count(), default=8),
        "outer_rank": replace(count(), default=8),
        "std": replace(STD, default=0.02),
        "cross_penalty": one_of(True, False),
    }

    def largest_rank(self, m: int, n: int) -> int:
        return min(super().largest_rank(m, n), int(self.settings["outer_rank"]))

    def _structure_options(self) -> dict[str, Any]:
        return super()._structure_options() | {"outer_rank": self.settings["outer_rank"]}
