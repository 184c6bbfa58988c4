"""What a planned run trains, costs and downloads, known before it runs and without a network."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from surm.data import data_facts
from surm.experiments.cost import correction, forward_flops, gpu_hours, training_flops
from surm.experiments.plan import PlannedRun
from surm.methods.base import is_head
from surm.methods.registry import make_method
from surm.models import model_download, skeleton
from surm.records.record import Record, read_records
from surm.records.recorded import canonical
from surm.shared.paths import PUBLISHED


@dataclass(frozen=True)
class Forecast:
    """`trainable` parameters without those of the `head`; hours on one A100 by the model of `surm.experiments.cost`."""

    trainable: int
    head: int
    gpu_hours: float
    downloads: tuple[str, ...]


def forecast(run: PlannedRun) -> Forecast | None:
    """What a run on data of the paper's scale will cost; None for data that are known only once they are read."""
    config, question = run.config, run.asked
    try:
        facts = data_facts(config.dataset.name)
    except ValueError:
        return None
    model = (config.model.name, *config.model.origin().items(), ("image_size", config.model.image_size))
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
    return forward_flops(_skeleton(model, 2), tokens)


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
