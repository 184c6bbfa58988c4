"""Learning rates: what tuning found for a model, a dataset and a method, else the method's usual starting point."""

import json
from functools import cache
from typing import Any

import yaml

from surm.config.schema import RunConfig
from surm.methods.registry import method_class
from surm.shared.paths import PAPER, RESULTS

TUNED_RATES = RESULTS / "tuned_rates.json"
STATED_RATES = PAPER / "rates.yaml"


def default_rate(config: RunConfig) -> tuple[float, str]:
    """The tuned rate, else the one that the paper states, else the method's usual one; and which of them it is."""
    if tuned := tuned_rate(config):
        return tuned, f"as tuned (results/{TUNED_RATES.name})"
    for row in _stated_rates():
        if config.model.name in row["models"] and config.dataset.name in row.get("datasets", [config.dataset.name]):
            return row["lr"], f"the paper's ({row['place']})"
    return method_class(config.structure.name).usual_rate, "the usual one, not tuned here"


@cache
def _stated_rates() -> list[dict[str, Any]]:
    """Rates that the paper states; the first row that fits a run counts."""
    rows: list[dict[str, Any]] = yaml.safe_load(STATED_RATES.read_text())
    return rows


def tuned_rate(config: RunConfig) -> float | None:
    """What tuning found for this model, dataset and method, if it was tuned.

    Variants share the rate of their family: LoRA's ranks, the terms of a sum, the sites and the bias of an adapter,
    fractions of one dataset.
    """
    tuned = tuned_rates().get(f"{config.model.name}/{config.dataset.name}", {}).get(rate_key(config))
    return tuned["lr"] if tuned else None


def rate_key(config: RunConfig) -> str:
    """The family of methods that a rate is for: the structure, apart in weight and in adapter form."""
    name = config.structure.name
    return f"{name} (adapter)" if config.placement.form == "adapter" and method_class(name).uses_placement else name


def tuned_rates() -> dict[str, dict[str, dict[str, Any]]]:
    """`results/tuned_rates.json`: model/dataset -> method -> {"lr": chosen, "tried": {rate: score}}."""
    if not TUNED_RATES.exists():
        return {}
    rates: dict[str, dict[str, dict[str, Any]]] = json.loads(TUNED_RATES.read_text())
    return rates
