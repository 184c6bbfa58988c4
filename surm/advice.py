"""The structure advisor on this project's models and tasks, and whether its scores agree with what training found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from hydra import compose
from hydra.core.config_store import ConfigStore
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from surm.advisor import EXACT, FAMILIES, UPDATES, Advice, advise
from surm.compose import Entry, check_command, composer, typed
from surm.config import ConfigError, DatasetConfig, ModelConfig, PlacementConfig, RunConfig, hint, validate
from surm.data import load_task
from surm.data.encode import encode
from surm.data.order import EpochBatches
from surm.models import load_backbone, split_fused_projections
from surm.record import PUBLISHED
from surm.report.advice import correlations
from surm.report.records import Record, label, read_records
from surm.threads import one_thread
from surm.tuners.targets import projection_names

CHECK = PUBLISHED.parent / "advisor_check.json"
CHECKED_TASKS = (("builtin_vit", "digits"), ("builtin_bert", "valence"))
CHECKED_METHODS = {  # family -> the method of the published runs that trains it
    "circulant": "circulant",
    "toeplitz_pair": "Toeplitz",
    "kronecker": "Kronecker",
    "ldr": "ldr, 1 term",
    "low_rank": "LoRA r=1",
}
CHECKED_LAYERS = 2  # the first and the last: the fit of a Toeplitz pair takes a minute or two a matrix


@dataclass
class AdviseOptions:
    structures: list[str] = field(default_factory=lambda: list(EXACT))
    update: str = "gradient"
    batches: int = 16
    batch_size: int = 32
    learning_rate: float = 1e-4
    memory_limit: int = 2**30
    by_layer: bool = False


@dataclass
class AdviseConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    advise: AdviseOptions = field(default_factory=AdviseOptions)
    check: bool = False
    seed: int = 0
    output_dir: str = "outputs"


def validate_advice(config: AdviseConfig) -> None:
    """Refuse, in one sentence (`ConfigError`), what cannot be advised on."""
    validate(RunConfig(config.model, config.dataset, placement=config.placement, seed=config.seed))
    options = config.advise
    for name in options.structures:
        if name not in FAMILIES:
            allowed = list(FAMILIES)
            raise ConfigError(f"advise.structures={name}: allowed are {', '.join(allowed)}{hint(name, allowed)}")
    if not options.structures:
        raise ConfigError(f"advise.structures=[]: give one or more of {', '.join(FAMILIES)}.")
    if options.update not in UPDATES:
        raise ConfigError(f"advise.update={options.update}: allowed are {', '.join(UPDATES)}.")
    for name in ("batches", "batch_size", "memory_limit", "learning_rate"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"advise.{name}={getattr(options, name)}: give a number above 0.")


ADVISE = Entry("advise", "scripts/advise.py", AdviseConfig, validate_advice)


def compose_advice(arguments: Sequence[str]) -> AdviseConfig:
    """The checked configuration of a `scripts/advise.py` command line; a mistake is one sentence (`ConfigError`)."""
    ConfigStore.instance().store(name="schema_advise", node=AdviseConfig)
    if flags := [argument for argument in arguments if argument.startswith("-")]:
        raise ConfigError(f"{' '.join(flags)}: this command has settings only, written as key=value.")
    check_command(arguments, ADVISE)
    with composer():
        return typed(compose(ADVISE.name, overrides=list(arguments)), ADVISE)


@one_thread()
def advise_task(config: AdviseConfig, layers: int | None = None) -> Advice:
    """Scores for a backbone with a new head, on the first batches of the training split.

    layers: so many of the backbone's layers, evenly spread; all by default.
    """
    data, chosen = config.dataset, config.model
    task = load_task(data.name, evaluate_on=data.evaluate_on, fraction=data.fraction, seed=config.seed, **data.origin())
    torch.manual_seed(config.seed)
    backbone = load_backbone(chosen.name, num_labels=task.num_labels, image_size=chosen.image_size, **chosen.origin())
    model = split_fused_projections(backbone.module)
    train = encode(task.train, backbone)
    order = EpochBatches(len(train), config.advise.batch_size, config.seed)
    batches = [train.collate([train[i] for i in indices]) for indices in islice(order, config.advise.batches)]
    return advise(
        model,
        batches,
        _loss,
        structures=config.advise.structures,
        target_modules=_targets(model, config.placement.parts, layers),
        memory_limit=config.advise.memory_limit,
        update=config.advise.update,
        learning_rate=config.advise.learning_rate,
    )


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    inputs = {key: tensor for key, tensor in batch.items() if key != "labels"}
    output = model(**inputs)
    return cross_entropy(getattr(output, "logits", output), batch["labels"])


def _targets(model: nn.Module, parts: Sequence[str], layers: int | None) -> list[str]:
    endings = projection_names(model, parts)
    if layers is None:
        return endings
    names = [name for name, _ in model.named_modules() if name.endswith(tuple(endings))]
    blocks = [names[i : i + len(parts)] for i in range(0, len(names), len(parts))]
    places = torch.linspace(0, len(blocks) - 1, layers).round().int().tolist()
    return [name for place in places for name in blocks[place]]


# --- is it worth anything? -------------------------------------------------------------------------------------------


def check(say: Callable[[str], None] = print) -> dict[str, Any]:
    """Rank correlation of the scores with accuracy and final training loss of the published runs, for `CHECK`."""
    records = [
        record
        for record in read_records(PUBLISHED).values()
        if record.finished
        and not record.is_study
        and record.asked["dataset"]["evaluate_on"] == "test"
        and record.asked["trainer"]["max_steps"] is None
    ]
    points: list[dict[str, Any]] = []
    for model, dataset in CHECKED_TASKS:
        say(f"{model} on {dataset}: projecting the gradients of the first and the last layer")
        config = compose_advice([f"model={model}", f"dataset={dataset}"])
        config.advise.structures = list(CHECKED_METHODS)
        advice = advise_task(config, CHECKED_LAYERS)
        for total in advice.totals:
            runs = [
                record
                for record in records
                if (record.asked["model"]["name"], record.asked["dataset"]["name"]) == (model, dataset)
                and label(record.asked) == CHECKED_METHODS[total.family]
            ]
            points.append(
                {
                    "task": f"{model} on {dataset}",
                    "family": total.family,
                    "method": CHECKED_METHODS[total.family],
                    "gain": float(f"{total.gain:.6g}"),
                    "captured": float(f"{total.captured:.6g}"),
                    "accuracy": fmean(run.score for run in runs),
                    "final_loss": fmean(final_loss(run) for run in runs),
                    "seeds": len(runs),
                }
            )
    return {
        "measured": f"gradients of {config.advise.batches} batches of {config.advise.batch_size} at the start, seed "
        f"{config.seed}, query, key and value of the first and the last layer",
        "points": points,
        "correlations": correlations(points),
    }


def final_loss(record: Record) -> float:
    """Mean of the last tenth of the logged training losses."""
    losses = [row["loss"] for row in record.happened["history"] if "loss" in row]
    return fmean(losses[-max(1, len(losses) // 10) :])
