"""Learning rates: what a search found for a run, else the method's usual starting point.

Two kinds of searches, of which a run's `search.by` chooses: `family` gives one rate to a method's variants on a data
set, whatever the length of the run, and to the task head; `run` gives a rate to each task, length, batch, rank and
number of terms, and with it the head's, which is common to all methods of the task.
"""

import json
from functools import cache
from typing import Any, NamedTuple

import yaml

from surm.config.schema import RunConfig
from surm.data import data_options
from surm.methods.names import data_name, label
from surm.methods.registry import method_class
from surm.models import model_image_size, model_width
from surm.shared.paths import PAPER, RESULTS

TUNED_RATES = RESULTS / "tuned_rates.json"
SEARCHED_RATES = RESULTS / "searched_rates.json"
STATED_RATES = PAPER / "rates.yaml"


class Rates(NamedTuple):
    """The learning rates of a run, and where they come from, in words."""

    lr: float
    head_lr: float | None  # None: as lr
    source: str


def rates_of(config: RunConfig) -> Rates:
    """The rates of a run that was given none, by the kind of search that it asks for."""
    if config.search.by == "run":
        return _searched(config)
    rate, source = default_rate(config)
    return Rates(rate, config.optim.head_lr, source)


# --- one for each length of a run -------------------------------------------------------------------------------------


class SearchKey(NamedTuple):
    """What a search of `search.by=run` is for, in words; what differs in these has rates of its own."""

    task: str  # builtin_vit at 42 px on cifar10, 5 %
    length: str  # 188 steps of 32
    method: str  # ldr, 4 terms


def search_key(config: RunConfig) -> SearchKey:
    """The key of a run: model, data and fraction; steps and batch; the method with its options and its form.

    The sites and the bias of an adapter and the projections of the weight form are variants that share a rate.
    """
    model, data, trainer = config.model, config.dataset, config.trainer
    size = model.image_size or model_image_size(model.name, source=model.source)
    task = model.name + (f" at {size} px" if size else "")
    task += f", dropout {model.dropout:g}" if model.dropout is not None else ""
    options = data_options(data.name, data.origin()["options"])
    task += f" on {data_name({'name': data.name, **options})}"
    task += f", {100 * data.fraction:g} %" if data.fraction < 1 else ""
    steps = f"{trainer.max_steps} steps" if trainer.max_steps else f"{trainer.epochs} epochs"
    method, form = method_class(config.structure.name), config.placement.form
    structure = method.resolve(config.structure, form, model_width(model.name, **model.origin()))
    name = label({"structure": structure})
    adapter = " (adapter)" if form == "adapter" and method.uses_placement else ""
    return SearchKey(task, f"{steps} of {trainer.batch_size * trainer.gradient_accumulation}", name + adapter)


def _searched(config: RunConfig) -> Rates:
    key, of_task = search_key(config), searched_rates().get(search_key(config).task, {})
    lengths = [key.length, *(length for length in of_task if length != key.length)]
    for length in lengths:
        if found := of_task.get(length, {}).get(key.method):
            elsewhere = "" if length == key.length else f", used for {key.length}"
            head = config.optim.head_lr or found["head_lr"]
            return Rates(found["lr"], head, f"searched at {length}{elsewhere} (results/{SEARCHED_RATES.name})")
    return Rates(method_class(config.structure.name).usual_rate, config.optim.head_lr, "the usual one, not tuned here")


def searched_rates() -> dict[str, dict[str, dict[str, Any]]]:
    """`results/searched_rates.json`: task -> length -> method -> what was found.

    Of each method "lr" and "head_lr", the chosen ones; "seeds"; "tried": rate -> {"loss": mean over the seeds, "runs":
    signatures}, a null loss for a rate at which a run diverged.
    """
    if not SEARCHED_RATES.exists():
        return {}
    rates: dict[str, dict[str, dict[str, Any]]] = json.loads(SEARCHED_RATES.read_text())
    return rates


# --- one for each family of methods -----------------------------------------------------------------------------------


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
