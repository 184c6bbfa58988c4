"""What a run or a study is asked: dataclass schemas, and checks that need more than one field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from surm.data import DATASETS, data_modality
from surm.experiments import STUDIES
from surm.methods import ignored_settings, method_names, method_settings
from surm.models import MODELS, model_modality, model_width
from surm.registry import nearest


class ConfigError(ValueError):
    """A command that cannot be run; the message is one sentence for the person who typed it."""


@dataclass
class ModelConfig:
    name: str = "builtin_vit"
    image_size: int | None = None  # pixels; null: the model's own


@dataclass
class DatasetConfig:
    name: str = "digits"
    evaluate_on: str = "test"  # test | selection (a fixed slice of the training split, for tuning)


@dataclass
class StructureConfig:
    """Every structure's options in one place; null is the structure's default, so that one sweep covers all."""

    name: str = "circulant"
    parametrization: str | None = None
    symmetric: bool | None = None
    factors: int | None = None
    factor_shape: list[int] | None = None
    terms: int | None = None
    rank: int | None = None
    alpha: float = 1.0
    dropout: float = 0.0
    init_weights: str = "default"  # default (zero update) | authors


@dataclass
class PlacementConfig:
    form: str = "weight"
    parts: list[str] = field(default_factory=lambda: ["q", "k", "v"])


@dataclass
class OptimConfig:
    lr: float | None = None  # null: the rate found by `make tune` for this model, dataset and method
    weight_decay: float = 0.01
    decay_structure: bool = False  # the authors decay structure parameters too
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_ratio: float = 0.06
    schedule: str = "linear"  # linear | cosine | constant
    max_grad_norm: float | None = 1.0


@dataclass
class TrainerConfig:
    epochs: int = 3
    batch_size: int = 32
    gradient_accumulation: int = 1
    precision: str = "no"  # no | bf16 | fp16
    max_steps: int | None = None
    eval_batch_size: int = 128
    log_every: int = 10  # steps
    checkpoint_every: int = 25  # steps
    threads: int | None = None


@dataclass
class TrackingConfig:
    name: str = "none"  # none | wandb
    mode: str = "online"  # online | offline
    project: str = "surm"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class TableConfig:
    """The experiment, one table, that a run was started for; no part of its identity."""

    name: str | None = None
    title: str = ""
    claims: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    structure: StructureConfig = field(default_factory=StructureConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    table: TableConfig = field(default_factory=TableConfig)
    seed: int = 0
    output_dir: str = "outputs"


@dataclass
class ApproximateConfig:
    """A study without a backbone; `study` holds one of the options classes of `surm.experiments`."""

    study: Any = None
    table: TableConfig = field(default_factory=TableConfig)
    output_dir: str = "outputs"


# --- checks across fields -------------------------------------------------------------------------------------------


def validate(config: RunConfig) -> None:
    """Refuse what cannot be run, before any model or data is loaded.

    Raises:
        ConfigError: one sentence with the value, the rule it breaks and what is allowed.
    """
    _one_of("model.name", config.model.name, tuple(MODELS))
    _one_of("dataset.name", config.dataset.name, tuple(DATASETS))
    takes, gives = model_modality(config.model.name), data_modality(config.dataset.name)
    if takes != gives:
        raise ConfigError(
            f"model={config.model.name} dataset={config.dataset.name}: the model takes {takes}, the dataset gives "
            f"{gives}; choose a pair that fits."
        )
    _one_of("dataset.evaluate_on", config.dataset.evaluate_on, ("test", "selection"))
    _one_of("structure.name", config.structure.name, method_names(), sums_of_structures=True)
    _one_of("structure.init_weights", config.structure.init_weights, ("default", "authors"))
    _one_of("placement.form", config.placement.form, ("weight",))
    _one_of("optim.schedule", config.optim.schedule, ("linear", "cosine", "constant"))
    _one_of("trainer.precision", config.trainer.precision, ("no", "bf16", "fp16"))
    _one_of("tracking.name", config.tracking.name, ("none", "wandb"))
    _one_of("tracking.mode", config.tracking.mode, ("online", "offline"))
    parts = config.placement.parts
    if not parts or len(set(parts)) < len(parts) or set(parts) - {"q", "k", "v"}:
        raise ConfigError(
            f"placement.parts={parts}: give one or more of q, k, v, each once, as in placement=weight_qv."
        )

    _at_least("seed", config.seed, 0)
    for name in ("epochs", "batch_size", "gradient_accumulation", "eval_batch_size", "log_every", "checkpoint_every"):
        _at_least(f"trainer.{name}", getattr(config.trainer, name), 1)
    for name in ("max_steps", "threads"):
        _at_least(f"trainer.{name}", getattr(config.trainer, name), 1)
    _at_least("model.image_size", config.model.image_size, 1)
    _above_zero("optim.lr", config.optim.lr)
    _above_zero("optim.max_grad_norm", config.optim.max_grad_norm)
    _within("optim.weight_decay", config.optim.weight_decay, 0.0, math.inf)
    _within("optim.warmup_ratio", config.optim.warmup_ratio, 0.0, 1.0)
    _within("optim.beta1", config.optim.beta1, 0.0, 1.0)
    _within("optim.beta2", config.optim.beta2, 0.0, 1.0)
    _within("structure.dropout", config.structure.dropout, 0.0, 1.0)
    if not math.isfinite(config.structure.alpha):
        raise ConfigError(f"structure.alpha={config.structure.alpha}: give a finite number.")
    width = model_width(config.model.name)
    try:
        method_settings(config.structure, width)
    except ValueError as error:
        raise ConfigError(f"structure={config.structure.name}: {error}") from None


def validate_study(config: ApproximateConfig) -> None:
    """Refuse a study that cannot be computed.

    Raises:
        ConfigError: one sentence with the value, the rule it breaks and what is allowed.
    """
    try:
        STUDIES[config.study.name].validate(config.study)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _one_of(key: str, value: str, allowed: Sequence[str], *, sums_of_structures: bool = False) -> None:
    names = value.split("+") if sums_of_structures else [value]
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{key}={value}: allowed are {', '.join(allowed)}{hint(name, allowed)}")


def _at_least(key: str, value: int | None, lowest: int) -> None:
    if value is not None and value < lowest:
        raise ConfigError(f"{key}={value}: give a whole number of at least {lowest}.")


def _above_zero(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{key}={value}: give a finite number above 0.")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ConfigError(f"{key}={value}: give a number from {low} to below {high}.")


def hint(name: str, allowed: Sequence[str]) -> str:
    """The end of a sentence that refuses a name: the nearest valid one, if there is one."""
    close = nearest(name, allowed)
    return f"; did you mean {close}?" if close else "."


def ignored_line(config: RunConfig) -> str | None:
    """One line that names the settings the chosen method does not use, if any were given."""
    ignored = ignored_settings(config)
    if not ignored:
        return None
    return f"structure={config.structure.name} does not use {', '.join(ignored)}: left out of this run's identity."
