"""Methods of PEFT's own: those that add to weights, and prefix tuning."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import Tensor, nn

from surm.methods.base import ALPHA, DROPOUT, Method, Settings
from surm.methods.schema import StructureConfig
from surm.models.backbone import Backbone
from surm.models.fused import split_fused_projections
from surm.shared.errors import RunError, first_line
from surm.shared.registry import look_up
from surm.structures.options import Option, count, one_of
from surm.tuners.targets import projection_names

PREFIX = "peft_"  # of the names of PEFT's own methods
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LORA", {"use_dora": True})
}  # methods that PEFT keeps as a switch of another


class AddsToWeights(Method):
    """An adapter of PEFT's on chosen projections, each a layer of its own: PEFT cannot adapt a part of a fused one."""

    forms = ("weight",)
    middle_rate = 6.3e-3

    @classmethod
    def prepare(cls, module: nn.Module) -> nn.Module:
        return split_fused_projections(module)

    def _with_peft(
        self, backbone: Backbone, placement: Settings, kind: Callable[..., PeftConfig], arguments: Settings
    ) -> nn.Module:
        module = self.prepare(backbone.module)
        targets = projection_names(module, placement["parts"])
        return get_peft_model(module, kind(target_modules=targets, modules_to_save=list(backbone.head), **arguments))


class Lora(AddsToWeights):
    """LoRA (Hu et al. 2021): W x + (alpha / rank) B A x."""

    name = "lora"
    options: ClassVar[Mapping[str, Option]] = {"rank": count(), "alpha": ALPHA, "dropout": DROPOUT}

    def largest_rank(self, m: int, n: int) -> int:
        return min(m, n, int(self.settings["rank"]))

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        settings = self.settings
        arguments = {"r": settings["rank"], "lora_alpha": settings["alpha"], "lora_dropout": settings["dropout"]}
        return self._with_peft(backbone, placement, LoraConfig, arguments)


class LoraFA(Lora):
    """LoRA-FA (Zhang et al. 2023): LoRA with A as drawn."""

    name = "lora_fa"

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        module = super()._apply(backbone, placement, steps)
        for name, parameter in module.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
        return module


class OfPeft(AddsToWeights):
    """Any other method of PEFT's, `peft_<method>`, with arguments of its own configuration class."""

    @classmethod
    def resolve(cls, structure: StructureConfig, form: str, width: int | None) -> dict[str, Any]:
        arguments = {key: width if value == "width" else value for key, value in structure.arguments.items()}
        cls._check(*_peft_config(structure.name, arguments))
        return {"name": structure.name, "arguments": arguments}

    @classmethod
    def _check(cls, kind: type[PeftConfig], arguments: Settings) -> None:
        """Refuse what PEFT's configuration refuses before it knows a model; the rest it refuses in the set-up.

        Raises:
            ValueError: one sentence.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when the method is applied
                cast(Any, kind)(target_modules=["query"], modules_to_save=["head"], **arguments)
        except Exception as error:  # of any type: most are of an argument's type
            raise ValueError(f"arguments: {kind.__name__} of PEFT refuses them ({first_line(error)}).") from None

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        return self._with_peft(backbone, placement, *_peft_config(self.settings["name"], self.settings["arguments"]))


class AdaLora(OfPeft):
    """AdaLoRA (arXiv 2303.10512): P diag(lambda) Q with a budget of ranks that falls, shared among the layers.

    Between the steps `tinit` and total - `tfinal` the budget falls from init_r to target_r a layer on average; the
    least important lambda are set to zero every `deltaT` steps, and kept at zero from total - `tfinal` on.
    """

    name = "peft_adalora"

    @classmethod
    def _check(cls, kind: type[PeftConfig], arguments: Settings) -> None:
        # The number of steps is the last thing that is not known yet; any that leaves the schedule room will do.
        schedule = {"total_step": 10**12, "tinit": 1, "tfinal": 1}
        super()._check(kind, {**schedule, **arguments})

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        # The shares of the schedule are ours where none are given.
        schedule = {"total_step": steps, "tinit": steps // 10, "tfinal": steps // 3}
        kind, arguments = _peft_config(self.name, self.settings["arguments"])
        module = self._with_peft(backbone, placement, kind, {**schedule, **arguments})
        self._tuner = cast(Any, module.base_model)
        self._config = self._tuner.peft_config[self._tuner.trainable_adapter_name]
        return module

    def extra_loss(self) -> Tensor | None:
        """The factors' distance from orthogonal ones (eq. 4): orth_reg_weight times the mean of |P P^T - I|_F.

        PEFT adds it where the model computes a loss itself, which ours do not.
        """
        weight: float = self._config.orth_reg_weight
        if not weight:
            return None
        distances = []
        for name, factor in self.module.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                gram = factor @ factor.mT if ".lora_A." in name else factor.mT @ factor
                distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
        return weight * torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        """Update the importance of each rank from parameters and gradients, and mask by the step's budget."""
        self._tuner.update_and_allocate(step)

    def state_dict(self) -> dict[str, Tensor]:
        """The running averages by which PEFT's allocator ranks, and which ranks it left, once it has chosen any.

        The rest is a function of the step. The averages are forgotten in step total - `tfinal`, where the ranks become
        final; the pattern is needed in every step after it, since the optimiser's momentum moves masked lambda too.
        """
        averages = {
            f"{average}/{name}": value
            for average in self._averages
            for name, value in getattr(self._tuner.rankallocator, average).items()
        }
        pattern = self._config.rank_pattern or {}
        return averages | {f"rank_pattern/{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        parameters = dict(self._tuner.model.named_parameters())
        kept: dict[str, dict[str, Tensor]] = {key: {} for key in (*self._averages, "rank_pattern")}
        for key, value in state.items():
            what, _, name = key.partition("/")
            if what not in kept:
                raise ValueError(f"it holds {key!r}, which AdaLoRA does not keep")
            kept[what][name] = value
        pattern = kept.pop("rank_pattern")
        adapted = {name for name in parameters if "lora_" in name}
        for average, values in kept.items():
            # Until the ranks are final all are averaged, afterwards none.
            if values.keys() != (set() if pattern and not values else adapted):
                raise ValueError(f"AdaLoRA's {average} is of other parameters than this run trains")
            for name, value in values.items():
                if value.shape != parameters[name].shape or not value.isfinite().all():
                    raise ValueError(f"AdaLoRA's {average} of {name} does not fit its parameter")
        for name, value in pattern.items():
            if parameters.get(name) is None or value.dtype != torch.bool or value.numel() != parameters[name].numel():
                raise ValueError(f"AdaLoRA's rank_pattern of {name} does not fit its parameter")
        self._config.rank_pattern = {name: value.tolist() for name, value in pattern.items()} or None
        for average, values in kept.items():
            on_device = {name: value.to(parameters[name].device) for name, value in values.items()}
            setattr(self._tuner.rankallocator, average, on_device)

    _averages = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # PEFT's names of its allocator's dictionaries


class PrefixTuning(Method):
    """Prefix tuning (Li and Liang 2021): in each layer trained keys and values stand before those of the text.

    tokens x 2 x layers x n parameters, n being the width of all keys of a token: the model's, or less where queries
    share keys. With `projection` they are the output of an MLP over `tokens` embeddings.
    PEFT counts the positions of the text from behind the prefix.
    """

    name = "prefix_tuning"
    uses_placement = False
    may_not_fit = True
    recomputes = False
    options: ClassVar[Mapping[str, Option]] = {"tokens": count(10), "projection": one_of(False, True)}

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        if backbone.modality != "text":
            raise ValueError("prefix tuning puts keys and values before those of a text, and the model reads none")
        config = PrefixTuningConfig(
            task_type=TaskType.SEQ_CLS if backbone.head else TaskType.CAUSAL_LM,
            num_virtual_tokens=self.settings["tokens"],
            prefix_projection=self.settings["projection"],
            modules_to_save=list(backbone.head) or None,
        )
        module: Any = get_peft_model(cast(Any, backbone.module), config)
        body = backbone.module.get_submodule(module.transformer_backbone_name)
        if not any("past_key_values" in inspect.signature(part.forward).parameters for part in (backbone.module, body)):
            raise ValueError(f"{type(body).__name__} takes no keys and values from before a text")
        module.register_forward_pre_hook(self._check_length, with_kwargs=True)
        return cast(nn.Module, module)

    def is_added(self, parameter_name: str) -> bool:
        return "prompt_encoder." in parameter_name

    def _check_length(self, module: Any, args: Any, kwargs: Settings) -> None:
        """Refuse, in one sentence, a text that with its prefix is longer than the model has positions."""
        text, most = kwargs["input_ids"].shape[1], getattr(module.config, "max_position_embeddings", None)
        if most is not None and text + self.settings["tokens"] > most:
            raise RunError(
                f"a text of {text} tokens behind a prefix of {self.settings['tokens']} is longer than the model's "
                f"{most} positions: lower structure.tokens."
            )


def _peft_config(name: str, arguments: Settings) -> tuple[type[PeftConfig], dict[str, Any]]:
    """The configuration class of `peft_<method>` and the arguments for it; ValueError for what PEFT does not have."""
    own: dict[str, tuple[str, dict[str, Any]]] = {kind.lower(): (kind, {}) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    del own["surm"]
    kind, switches = look_up(own | VARIANTS, name.removeprefix(PREFIX), "method of PEFT")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = inspect.signature(config_class).parameters
    for argument in arguments:
        if argument not in known or argument in ("target_modules", "modules_to_save"):
            raise ValueError(f"arguments.{argument}: {config_class.__name__} of PEFT takes no such argument from here.")
    if "target_modules" not in known or "modules_to_save" not in known:
        raise ValueError(f"{config_class.__name__} of PEFT does not adapt chosen layers beside a trained head.")
    return config_class, {**switches, **arguments}
