"""The Hadamard adapter: a scale and a shift of each attention's output, with LayerNorms unfrozen."""

import re
from collections.abc import Mapping
from typing import ClassVar

from peft import get_peft_model
from torch import nn

from surm.methods.base import Method, Settings, number
from surm.models.backbone import Backbone
from surm.structures.options import Option, is_count, one_of
from surm.tuners import SurmConfig
from surm.tuners.targets import projection_names

# Names within a block: of the normalisation that follows the attention, and of the other one.
NORMS = (
    ("attention.output.LayerNorm", "output.LayerNorm"),
    ("norm2", "norm1"),
    ("layernorm_after", "layernorm_before"),
    ("layer_norm2", "layer_norm1"),
    ("post_attention_layernorm", "input_layernorm"),
    ("ln_2", "ln_1"),
)


class Hadamard(Method):
    """w * A + b for the output A of each attention, w = 1 and b = 0 at the start (Chen et al., arXiv 2407.11033).

    `position` "before" the attention's output projection W_O, as in the paper's formula, or "after" it; `shift`: with
    b; `norms`: which normalisations of a block are trained whole, "one", that which follows the attention, "none" or
    "both"; `layers`: in how many of the upper blocks, by default in all. In the share `head_first` of the steps the
    task head alone is trained, the paper's first stage, whose length it does not say.

    2 d L parameters, and 2 d L for each normalisation of a block. It merges exactly into W_O.
    """

    name = "hadamard"
    uses_placement = False
    may_not_fit = True
    options: ClassVar[Mapping[str, Option]] = {
        "position": one_of("before", "after"),
        "shift": one_of(True, False),
        "norms": one_of("one", "none", "both"),
        "layers": Option(int, None, lambda value: value is None or is_count(value), "an integer of at least 1"),
        "head_first": number(0.0, low=0.0, below=1.0),
    }

    def _apply(self, backbone: Backbone, placement: Settings, steps: int) -> nn.Module:
        settings, module = self.settings, backbone.module
        self._alone = round(settings["head_first"] * steps)
        endings = tuple(f".{ending}" for ending in projection_names(module, ["o"]))
        outputs = [name for name, layer in module.named_modules() if name.endswith(endings)]
        if settings["layers"] is not None:
            if settings["layers"] > len(outputs):
                raise ValueError(f"layers={settings['layers']} is not possible: the model has {len(outputs)} blocks.")
            outputs = outputs[-settings["layers"] :]
        config = SurmConfig(
            structure="diagonal",
            form="adapter",
            target_modules=outputs,
            adapter_side="input" if settings["position"] == "before" else "output",
            adapter_activation="identity",
            adapter_bias=settings["shift"],
            modules_to_save=[*backbone.head, *(norm for name in outputs for norm in self._norms(module, name))],
        )
        return get_peft_model(module, config)

    def _norms(self, module: nn.Module, output: str) -> list[str]:
        """The names of the normalisations to train in the block of this output projection."""
        count = ("none", "one", "both").index(self.settings["norms"])
        numbered = re.match(r".*\.\d+(?=\.)", output)
        block = numbered[0] if numbered else ""
        names = {name for name, _ in module.named_modules()}
        for pair in NORMS:
            found = [f"{block}.{name}" for name in pair]
            if names.issuperset(found):
                return found[:count]
        if count == 0:
            return []
        raise ValueError(
            f"norms={self.settings['norms']}: the normalisations in {block or 'the model'} are not known by their "
            "names: give norms=none."
        )

    def is_added(self, parameter_name: str) -> bool:
        # Vectors, which do not decay, like those of the normalisations beside them.
        return False

    def after_backward(self, step: int) -> None:
        # In place of freezing, so that nothing depends on what a process or a checkpoint knows beside the step.
        for name, parameter in self.trained_parameters() if step < self._alone else ():
            if not self.in_head(name):
                parameter.grad = None
