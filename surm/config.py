"""What a run or a study is asked: dataclass schemas, and checks that need more than one field."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from surm.data import check_data, data_modality
from surm.experiments import STUDIES
from surm.methods import FORMS, check_form, ignored_settings, is_peft_method, method_names, method_settings
from surm.models import check_model, model_modality, model_width
from surm.registry import nearest
from surm.tuners.config import ACTIVATIONS
from surm.tuners.targets import PARTS, POSITIONS, SITES


class ConfigError(ValueError):
    """A command that cannot be run; the message is one sentence for the person who typed it."""


class FormError(ConfigError):
    """A method that does not exist in the placement's form: a hole in a sweep over both, and an error alone."""


@dataclass
class ModelConfig:
    name: str = "builtin_vit"
    source: str | None = None  # timm | transformers | local, for a name that conf/model does not have
    revision: str | None = None  # of the hub; null: the pinned one, or main for a name with a source
    path: str | None = None  # folder with the hub's files, instead of the hub
    image_size: int | None = None  # pixels; null: the model's own

    def origin(self) -> dict[str, Any]:
        """What tells where the model comes from, beside its name, as `surm.models` takes it."""
        return {"source": self.source, "revision": self.revision, "path": self.path}


@dataclass
class DatasetConfig:
    name: str = "digits"
    path: str | None = None  # folder with the task's files, instead of the hub
    fraction: float = 1.0  # of the training split: nested, stratified subsets by seed
    columns: dict[str, str | None] = field(default_factory=dict)  # of dataset=table: text, text_pair, image, label
    evaluate_on: str = "test"  # test | selection (a fixed slice of the training split, for tuning)

    def origin(self) -> dict[str, Any]:
        """What tells where the data come from, beside their name, as `surm.data` takes it."""
        return {"path": self.path, "columns": {key: name for key, name in self.columns.items() if name} or None}


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
    size: int | None = None  # of a bottleneck adapter
    arguments: dict[str, Any] = field(default_factory=dict)  # of peft_<method>: those of PEFT's own configuration
    alpha: float = 1.0
    dropout: float = 0.0
    init_weights: str = "default"  # default (zero update) | authors


@dataclass
class PlacementConfig:
    form: str = "weight"  # weight | adapter
    parts: list[str] = field(default_factory=lambda: ["q", "k", "v"])  # weight form: of q, k, v, o, mlp
    sites: str = "houlsby"  # adapter form: houlsby | pfeiffer
    adapter_bias: bool = True
    activation: str = "gelu"  # gelu | silu | tanh | identity
    position: str = "after"  # after | before the hidden dropout


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
    gradient_checkpointing: bool = False  # less memory, more time
    compile: bool = False  # torch.compile
    evaluate_every: int = 1  # epochs; always after the last
    eval_batch_size: int = 128
    log_every: int = 10  # steps
    checkpoint_every: int = 25  # steps
    threads: int | None = None
    workers: int = 0  # processes that decode images


@dataclass
class TrackingConfig:
    name: str = "none"  # none | wandb
    mode: str = "online"  # online | offline
    project: str = "surm"
    entity: str | None = None  # null: the account's own
    tags: list[str] = field(default_factory=list)
    log_adapter: bool = False  # the trained adapter as an artifact, too


@dataclass
class TableConfig:
    """The experiment, one table, that a run was started for; no part of its identity."""

    name: str | None = None
    title: str = ""
    claims: list[str] = field(default_factory=list)
    published: str = ""  # a file of results/paper: rows that others published, shown below the table


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
    device: str = "auto"  # auto | cuda | mps | cpu
    output_dir: str = "outputs"


@dataclass
class ApproximateConfig:
    """A study without a backbone; `study` holds one of the options classes of `surm.experiments`."""

    study: Any = None
    table: TableConfig = field(default_factory=TableConfig)
    output_dir: str = "outputs"


# --- checks across fields -------------------------------------------------------------------------------------------


def validate(config: RunConfig, *, files: bool = True) -> None:
    """Refuse what cannot be run, before any model or data is loaded.

    files: look whether the data are there, too; a plan may be made where they are not.

    Raises:
        ConfigError: one sentence with the value, the rule it breaks and what is allowed.
    """
    try:
        check_model(config.model.name, **config.model.origin(), image_size=config.model.image_size)
        if files:
            check_data(config.dataset.name, **config.dataset.origin())
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from None
    takes = model_modality(config.model.name, **config.model.origin())
    gives = data_modality(config.dataset.name, columns=config.dataset.origin()["columns"])
    if takes != gives:
        raise ConfigError(
            f"model={config.model.name} dataset={config.dataset.name}: the model takes {takes}, the dataset gives "
            f"{gives}; choose a pair that fits."
        )
    _one_of("dataset.evaluate_on", config.dataset.evaluate_on, ("test", "selection"))
    if not is_peft_method(config.structure.name):
        _one_of("structure.name", config.structure.name, method_names(), sums_of_structures=True)
    _one_of("structure.init_weights", config.structure.init_weights, ("default", "authors"))
    _one_of("placement.form", config.placement.form, FORMS)
    _one_of("placement.sites", config.placement.sites, SITES)
    _one_of("placement.activation", config.placement.activation, ACTIVATIONS)
    _one_of("placement.position", config.placement.position, POSITIONS)
    _one_of("device", config.device, ("auto", "cuda", "mps", "cpu"))
    _one_of("optim.schedule", config.optim.schedule, ("linear", "cosine", "constant"))
    _one_of("trainer.precision", config.trainer.precision, ("no", "bf16", "fp16"))
    _one_of("tracking.name", config.tracking.name, ("none", "wandb"))
    _one_of("tracking.mode", config.tracking.mode, ("online", "offline"))
    parts = config.placement.parts
    if not parts or len(set(parts)) < len(parts) or set(parts) - set(PARTS):
        raise ConfigError(
            f"placement.parts={parts}: give one or more of {', '.join(PARTS)}, each once, as in placement=weight_qv."
        )
    if not 0 < config.dataset.fraction <= 1:
        raise ConfigError(f"dataset.fraction={config.dataset.fraction}: give a share above 0 and at most 1.")

    _at_least("seed", config.seed, 0)
    for name in (
        "epochs",
        "batch_size",
        "gradient_accumulation",
        "eval_batch_size",
        "evaluate_every",
        "log_every",
        "checkpoint_every",
    ):
        _at_least(f"trainer.{name}", getattr(config.trainer, name), 1)
    _at_least("trainer.workers", config.trainer.workers, 0)
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
    try:
        method_settings(
            config.structure, config.placement.form, model_width(config.model.name, **config.model.origin())
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"structure={config.structure.name}: {error}") from None
    try:
        check_form(config.structure.name, config.placement.form)
    except ValueError as error:
        raise FormError(f"structure={config.structure.name} placement.form={config.placement.form}: {error}") from None


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
