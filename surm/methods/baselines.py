"""Baselines that train parameters which the backbone already has."""

from collections.abc import Iterator

from torch import nn

from surm.methods.base import Method, Settings
from surm.models.backbone import Backbone
from surm.tuners.targets import projection_names


class InPlace(Method):
    """Trains a part of the backbone's own parameters, beside the task head."""

    uses_placement = False

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        trained = set(self.chosen(backbone.module))
        found = self.trains_head_alone
        for name, parameter in backbone.module.named_parameters():
            found |= parameter in trained and not self.in_head(name)
            parameter.requires_grad_(self.in_head(name) or parameter in trained)
        if not found:
            raise ValueError(
                f"{type(backbone.module).__name__} has no parameter that {self.name} trains: choose another method"
            )
        return backbone.module

    def chosen(self, module: nn.Module) -> Iterator[nn.Parameter]:
        """The backbone's parameters that are trained; the head's may be among them."""
        raise NotImplementedError


class Full(InPlace):
    """Every parameter."""

    name = "full"
    usual_rate = 1e-4
    middle_rate = 1e-4
    trains_matrices = True

    def chosen(self, module: nn.Module) -> Iterator[nn.Parameter]:
        return module.parameters()


class AttentionTuning(InPlace):
    """Query, key, value and output projections, weights and biases."""

    name = "attention_tuning"
    usual_rate = 1e-4
    middle_rate = 1e-4
    trains_matrices = True

    def chosen(self, module: nn.Module) -> Iterator[nn.Parameter]:
        endings = tuple(f".{ending}" for ending in projection_names(module, ["q", "k", "v", "o"]))
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear) and name.endswith(endings):
                yield from layer.parameters()


class BitFit(InPlace):
    """Every bias (Ben Zaken et al. 2022)."""

    name = "bitfit"

    def chosen(self, module: nn.Module) -> Iterator[nn.Parameter]:
        return (parameter for name, parameter in module.named_parameters() if name.endswith(".bias"))


class LayerNormTuning(InPlace):
    """Weights and biases of every LayerNorm."""

    name = "layernorm_tuning"

    def chosen(self, module: nn.Module) -> Iterator[nn.Parameter]:
        return (p for layer in module.modules() if isinstance(layer, nn.LayerNorm) for p in layer.parameters())


class LinearProbe(InPlace):
    """The task head alone."""

    name = "linear_probe"
    usual_rate = 1e-2
    middle_rate = 1e-1
    trains_head_alone = True

    def chosen(self, module: nn.Module) -> Iterator[nn.Parameter]:
        return iter(())
