"""What a planned run trains, costs and downloads, before it runs and without a network.

A training step is counted as multiples of the forward pass F of the frozen backbone: one F forward, one for the
gradients of the activations, one for those of the weights. Full fine-tuning pays all three; a method that adds
parameters pays two and three times its own product U; a linear probe needs no gradient below the head and pays one.
Embeddings, norms, activations, the optimiser and the evaluation are left out.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from surm.config.run import Run
from surm.data import data_facts, data_predicts
from surm.methods.base import is_head
from surm.methods.registry import make_method, method_class
from surm.models import Backbone, model_download, skeleton
from surm.records.record import Record, read_records
from surm.records.recorded import canonical
from surm.shared.paths import PUBLISHED
from surm.shared.registry import look_up

# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """Trainable parameters without those of the `head`; hours on one A100 by the model of this file."""

    trainable: int
    head: int
    gpu_hours: float
    downloads: tuple[str, ...]


def forecast(run: Run) -> Forecast | None:
    """What a run on data of the paper's scale will cost; None for data that are known only once they are read."""
    config, question = run.config, run.asked
    try:
        facts = data_facts(config.dataset.name, options=config.dataset.origin()["options"])
    except ValueError:
        return None
    own = {**config.model.origin(), "predicts": data_predicts(config.dataset.name)}
    model = (config.model.name, *own.items(), ("image_size", config.model.image_size))
    trainer, examples = config.trainer, facts.train_examples * config.dataset.fraction
    batch = trainer.batch_size * trainer.gradient_accumulation
    seen = min(trainer.epochs * examples, (trainer.max_steps or 10**12) * batch)
    evaluations = max(1, seen / examples // trainer.evaluate_every)
    method = question["structure"]["name"]
    forward = _forward(model, facts.tokens)
    flops = training_flops(forward, round(seen), method=method) * _correction(method)
    flops += forward * facts.evaluation_examples * evaluations
    trainable = _trainable(model, canonical({key: question.get(key) for key in ("structure", "placement")}))
    weights = model_download(config.model.name, **config.model.origin())
    given = ((config.model.path, weights), (config.dataset.path, facts.download))
    return Forecast(
        trainable,
        _head(model, facts.num_labels),
        gpu_hours(flops),
        tuple(needed for path, needed in given if path is None and needed),
    )


def total(forecasts: Iterable[Forecast]) -> tuple[float, list[str]]:
    """Hours of all, and what they download together."""
    known = list(forecasts)
    downloads = dict.fromkeys(needed for forecast in known for needed in forecast.downloads)
    return sum(forecast.gpu_hours for forecast in known), list(downloads)


def _skeleton(model: tuple[Any, ...], num_labels: int) -> Any:
    name, *options = model
    return skeleton(name, num_labels=num_labels, **dict(options))


@cache
def _forward(model: tuple[Any, ...], tokens: int | None) -> int:
    backbone = _skeleton(model, 2)
    backbone.module.requires_grad_(False)  # of a parameter that a module returns as it is, torch's counter would fail
    return forward_flops(backbone, tokens)


@cache
def _trainable(model: tuple[Any, ...], method: str) -> int:
    asked = json.loads(method)
    made = make_method(asked["structure"])
    made.apply(_skeleton(model, 2), asked["placement"], steps=1000)
    return made.count()[0]


@cache
def _head(model: tuple[Any, ...], num_labels: int) -> int:
    backbone = _skeleton(model, num_labels)
    named = backbone.module.named_parameters()
    return sum(parameter.numel() for name, parameter in named if is_head(name, backbone.head))


@cache
def _correction(method: str) -> float:
    return correction(method, _published().values())


@cache
def _published() -> dict[str, Record]:
    return read_records(PUBLISHED)


# --- the model of costs -----------------------------------------------------------------------------------------------

# Assumptions, not measurements.
PEAK_FLOPS = {"a100": 312e12}  # dense bfloat16 operations a second, from NVIDIA's data sheet
UTILISATION = 0.35  # share of the peak that training a transformer reaches

REFERENCES = ("full", "lora")  # what a measured step is compared with; the first that was measured


def forward_flops(backbone: Backbone, tokens: int | None = None) -> int:
    """Operations of the forward pass of one example, an addition or a multiplication each; exact for matrix products.

    Args:
        backbone: best a `skeleton`, which computes nothing.
        tokens: length of the text, special tokens included; None for images, whose size the backbone knows.
    """
    device = next(backbone.module.parameters()).device
    if backbone.modality == "text":
        if tokens is None:
            raise ValueError("tokens=None: the cost of a text depends on its length; give its number of tokens.")
        inputs = {
            "input_ids": torch.zeros(1, tokens, dtype=torch.long, device=device),
            # Whole, or a language model looks for its shape in values, which a skeleton has not.
            "attention_mask": torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=device),
        }
    else:
        assert backbone.image_size is not None
        shape = (1, 3, backbone.image_size, backbone.image_size)
        inputs = {backbone.input_name: torch.zeros(shape, device=device)}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.module(**inputs)
    return int(counter.get_total_flops())


def training_flops(forward: int, examples: int, epochs: float = 1, *, method: str = "full", update: int = 0) -> int:
    """Operations of a whole training.

        full fine-tuning: 3 F,   added parameters, BitFit: 2 F + 3 U,   linear probe: F + U    for each example

    Args:
        forward: F, from `forward_flops`.
        examples: of the training split, or steps times batch size, with one epoch.
        epochs: passes over them.
        method: `asked.structure.name` of a run.
        update: U, forward operations of what is added to one example's pass: 2 m n times tokens for a dense matrix,
            2 (m + n) r for LoRA; the head's for a linear probe. It is small enough to be left out of most plans.
    """
    asked = method_class(method)
    if asked.trains_matrices:  # where only some are trained, as by attention_tuning, this is too high
        each = 3 * forward
    elif asked.trains_head_alone:
        each = forward + update
    else:
        each = 2 * forward + 3 * update
    return round(examples * epochs * each)


def gpu_hours(flops: float, *, gpu: str = "a100") -> float:
    """Hours on one GPU at 35 % of its bfloat16 peak: an assumption, to be corrected by the first measured run."""
    return flops / (look_up(PEAK_FLOPS, gpu, "GPU") * UTILISATION) / 3600


def correction(family: str, records: Iterable[Record]) -> float:
    """By how much a method's step took longer than the model says, relative to full fine-tuning, in finished runs.

        median over runs of (seconds of the method / seconds of the reference) / (its operations / the reference's)

    The reference is the median step of full fine-tuning, or else of LoRA, with the same backbone, data, batch and
    machine. 1.0 where no such pair was measured. The published pairs come from a processor at width 384; nothing says
    that they hold on a GPU.

    Args:
        family: `asked.structure.name` of the runs.
        records: of any runs and studies.
    """
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.finished and not record.is_study and record.happened.get("seconds_per_step"):
            seconds[_conditions(record)][record.asked["structure"]["name"]].append(record.happened["seconds_per_step"])
    ratios = []
    for measured in seconds.values():
        reference = next((name for name in REFERENCES if name in measured), None)
        if reference is not None:
            expected = training_flops(1, 1, method=family) / training_flops(1, 1, method=reference)
            slow = statistics.median(measured[reference])
            ratios += [step / slow / expected for step in measured.get(family, [])]
    return statistics.median(ratios) if ratios else 1.0


def _conditions(record: Record) -> str:
    """What a step's time depends on beside the method, as text."""
    asked = record.asked
    trainer = [asked["trainer"].get(key) for key in ("batch_size", "gradient_accumulation", "precision")]
    same = [asked["model"], asked["dataset"]["name"], trainer, record.where.get("machine")]
    return json.dumps(same, sort_keys=True)
