"""Learning rates: what tuning found for a model, a dataset and a method, else the method's usual starting point."""

import json
from typing import Any

from surm.config.schema import RunConfig
from surm.methods.apply import uses_placement
from surm.shared.paths import RESULTS

TUNED_RATES = RESULTS / "tuned_rates.json"

# Where a search starts when nothing has been tuned.
USUAL_RATES = {
    "full": 1e-4,
    "attention_tuning": 1e-4,
    "linear_probe": 1e-2,
    "bitfit": 3e-3,
    "layernorm_tuning": 3e-3,
    "lora": 3e-3,
    "bottleneck": 1e-3,
}
STRUCTURE_RATE = 3e-3


def default_rate(config: RunConfig) -> tuple[float, str]:
    """The tuned rate, else the one that the paper states, else the method's usual one; and which of them it is."""
    if tuned := tuned_rate(config):
        return tuned, f"as tuned (results/{TUNED_RATES.name})"
    if stated := stated_rate(config):
        return stated, "the paper's (B.1)"
    return USUAL_RATES.get(config.structure.name, STRUCTURE_RATE), "the usual one, not tuned here"


def stated_rate(config: RunConfig) -> float | None:
    """Appendix B.1: one rate for every image classification with the paper's backbones, a larger one for SVHN."""
    if config.model.name not in ("vit_b16", "clip_vit_b16"):
        return None
    return 5e-4 if config.dataset.name == "vtab/svhn" else 5e-5


def tuned_rate(config: RunConfig) -> float | None:
    """What tuning found for this model, dataset and method, if it was tuned.

    Variants share the rate of their family: LoRA's ranks, the terms of a sum, the sites and the bias of an adapter,
    fractions of one dataset.
    """
    found = tuned_rates().get(f"{config.model.name}/{config.dataset.name}", {}).get(rate_key(config))
    return found["lr"] if found else None


def rate_key(config: RunConfig) -> str:
    """The family of methods that a rate is for: the structure, apart in weight and in adapter form."""
    name = config.structure.name
    return f"{name} (adapter)" if config.placement.form == "adapter" and uses_placement(name) else name


def tuned_rates() -> dict[str, dict[str, dict[str, Any]]]:
    """`results/tuned_rates.json`: model/dataset -> method -> {"lr": chosen, "tried": {rate: score}}."""
    if not TUNED_RATES.exists():
        return {}
    rates: dict[str, dict[str, dict[str, Any]]] = json.loads(TUNED_RATES.read_text())
    return rates
