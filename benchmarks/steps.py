"""Whole training steps of a backbone with the query, key and value projections adapted, relative to LoRA r=1."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.layers import STRUCTURES
from benchmarks.measure import Candidate, Step, candidate, measure
from benchmarks.modes import compiled
from benchmarks.result import LORA, TARGETS, Cell
from surm.config.schema import OptimConfig
from surm.data import Task, load_task
from surm.data.encode import encode
from surm.methods.registry import AnyMethodConfig, make_method, method_class
from surm.models import load_backbone, model_modality, model_width
from surm.models.backbone import Backbone
from surm.training.optim import parameter_groups
from surm.tuners.layer import SurmWeight

MODELS = ("builtin_vit", "builtin_bert")
TASKS = {"image": "digits", "text": "valence"}
RATE = 1e-4
PLACEMENT = {"form": "weight", "parts": ["q", "k", "v"]}
METHODS: dict[str, tuple[str, Mapping[str, Any]]] = {
    LORA: ("lora", {"rank": 1}),
    **{name: STRUCTURES[name] for name in TARGETS},
}


def measure_steps(
    model: str,
    batch_size: int,
    device: torch.device,
    *,
    rounds: int,
    only: Sequence[str] = tuple(METHODS),
    backend: str = "auto",
    image_size: int | None = None,
    precision: str = "",
    mode: str = "",
    seconds: float | None = None,
    end: float = math.inf,
) -> Cell:
    """Forward pass, cross-entropy, backward pass and AdamW step on the first examples of this project's task.

    Each method has a copy of the model, so that none waits for a switch. The batch lies on the device already.

    image_size: pixels; by default the model's own.
    precision, mode: "no" or "bf16" by autocast, "eager" or "compiled", which the cell's place then names.
    seconds: start no further round after so long, once there are three.
    end: of `time.monotonic`, after which no further method than LoRA is prepared.
    """
    task = load_task(TASKS[model_modality(model)])
    place = {"model": model, "dataset": task.name, "batch_size": batch_size, "device": device.type}
    place |= {key: value for key, value in (("precision", precision), ("mode", mode)) if value}
    chosen = [name for name in METHODS if name in {LORA, *only}]

    def prepared(name: str) -> Candidate:
        if name != LORA and time.monotonic() > end:
            return Candidate(name, "ours", reason="no time was left")
        backbone = _backbone(model, task, image_size)
        return _candidate(name, backbone, model, task, batch_size, device, backend, precision, mode)

    candidates = [prepared(name) for name in chosen]
    return measure(place, candidates, LORA, rounds=rounds, device=device, seconds=seconds, memory=mode in ("", "eager"))


def _backbone(model: str, task: Task, image_size: int | None) -> Backbone:
    torch.manual_seed(0)
    size = image_size if model_modality(model) == "image" else None
    return load_backbone(model, num_labels=task.num_labels, image_size=size)


def _candidate(
    name: str,
    backbone: Backbone,
    model: str,
    task: Task,
    batch_size: int,
    device: torch.device,
    backend: str,
    precision: str,
    mode: str,
) -> Candidate:
    def make() -> tuple[Step, int]:
        family, options = METHODS[name]
        asked = AnyMethodConfig(name=family, **options)
        method = make_method(method_class(family).resolve(asked, "weight", model_width(model)))
        module = method.apply(backbone, PLACEMENT).train().to(device)
        for layer in module.modules():
            if isinstance(layer, SurmWeight):
                layer.backend = dict.fromkeys(layer.backend, backend)
        optimizer = torch.optim.AdamW(parameter_groups(method, OptimConfig()), lr=RATE)
        train = encode(task.train, backbone)
        batch = {key: value.to(device) for key, value in train.collate([train[i] for i in range(batch_size)]).items()}
        labels = batch.pop("labels")
        if mode == "compiled":
            compiled(module, device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = module(**batch)
            torch.autograd.backward(cross_entropy(getattr(output, "logits", output).float(), labels))
            optimizer.step()
            optimizer.zero_grad()

        return step, method.count()[0]

    return candidate(name, "peft" if name == LORA else "ours", make)
