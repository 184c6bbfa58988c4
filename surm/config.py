"""What a run is asked: dataclass schemas registered with Hydra, and checks that need more than one field.

A command is composed and checked here before Hydra takes over, so that a typo is one sentence and writes nothing.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from surm.data import DATASETS, data_modality
from surm.methods import ignored_settings, method_names, method_settings
from surm.models import MODELS, model_modality, model_width
from surm.registry import nearest

CONFIG_DIRECTORY = Path(__file__).resolve().parents[1] / "conf"


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
class StudyConfig:
    """The experiment that a run was started for; no part of its identity."""

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
    study: StudyConfig = field(default_factory=StudyConfig)
    seed: int = 0
    output_dir: str = "outputs"


def register_schema() -> None:
    """Tell Hydra the schema that `conf/config.yaml` names first."""
    ConfigStore.instance().store(name="schema", node=RunConfig)


def typed(config: DictConfig) -> RunConfig:
    """The composed configuration as dataclasses, checked."""
    schema = OmegaConf.structured(RunConfig)
    run = OmegaConf.to_object(OmegaConf.merge(schema, config))
    assert isinstance(run, RunConfig)
    validate(run)
    return run


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


def _one_of(key: str, value: str, allowed: Sequence[str], *, sums_of_structures: bool = False) -> None:
    names = value.split("+") if sums_of_structures else [value]
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{key}={value}: allowed are {', '.join(allowed)}{_hint(name, allowed)}")


def _at_least(key: str, value: int | None, lowest: int) -> None:
    if value is not None and value < lowest:
        raise ConfigError(f"{key}={value}: give a whole number of at least {lowest}.")


def _above_zero(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{key}={value}: give a finite number above 0.")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ConfigError(f"{key}={value}: give a number from {low} to below {high}.")


def _hint(name: str, allowed: Sequence[str]) -> str:
    close = nearest(name, allowed)
    return f"; did you mean {close}?" if close else "."


# --- composing ------------------------------------------------------------------------------------------------------


@contextmanager
def composer() -> Iterator[None]:
    """Open `conf/` for several calls of `compose_run`; leaves no trace for `hydra.main`."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """One run's checked configuration; call inside `composer()`."""
    return typed(_compose(overrides))


def sweep_members(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists that `-m` runs: the experiment file's own sweep, with the command line's values first.

    Call inside `composer()`.
    """
    parsed = _parse(overrides)
    swept = {o.get_key_element() for o in parsed}
    single = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    own = _compose(single, with_hydra=True).hydra.sweeper.params or {}
    from_file = [f"{key}={value}" for key, value in own.items() if key not in swept]
    batches = BasicSweeper.split_arguments(_parse([*from_file, *overrides]), max_batch_size=None)
    return [list(member) for member in batches[0]]


def check_command(arguments: Sequence[str]) -> None:
    """Compose and check everything a `scripts/train.py` command line would run.

    Raises:
        ConfigError: one sentence; nothing has been written and no model has been loaded.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    multirun = any(argument in ("-m", "--multirun") for argument in arguments)
    for override in _parse(overrides):
        _check_name(override)
        if override.is_sweep_override() and override.get_key_element() == "experiment":
            raise ConfigError(
                f"{override.input_line}: a sweep over experiments would apply neither file's own sweep; "
                "start one command for each experiment."
            )
        if override.is_sweep_override() and not multirun:
            raise ConfigError(f"{override.input_line}: several values are a sweep; add -m to the command.")
    with composer():
        for member in sweep_members(overrides) if multirun else [overrides]:
            compose_run(member)


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {_first_line(error)}; write settings as key=value.") from None


def _compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    try:
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise ConfigError(f"{' '.join(overrides)}: {_first_line(reason)}.") from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def groups() -> dict[str, list[str]]:
    """Config groups and the names each offers."""
    folders = (path for path in CONFIG_DIRECTORY.iterdir() if path.is_dir() and path.name != "scale")
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in sorted(folders)}


def _check_name(override: Override) -> None:
    """A group's value and a setting's dotted path must exist; the message names the nearest one."""
    key = override.get_key_element().lstrip("+~")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if key in groups():
        names = groups()[key]
        values = _values(override)
        for value in values:
            if value not in (*names, "null"):
                raise ConfigError(f"{key}={value}: conf/{key} has {', '.join(names)}{_hint(value, names)}")
        return
    node: Any = RunConfig()
    for depth, step in enumerate(key.split(".")):
        known = [f.name for f in fields(node)] if is_dataclass(node) else []
        if step not in known:
            _unknown_setting(override, key.split(".")[:depth], step, known)
        node = getattr(node, step)
    if is_dataclass(node):
        raise ConfigError(
            f"{override.input_line}: {key} holds several settings; set one, such as {key}.{fields(node)[0].name}=..."
        )


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [str(override.value()) if override.value() is not None else "null"]


def _unknown_setting(override: Override, path: list[str], step: str, known: list[str]) -> NoReturn:
    where = ".".join(path)
    candidates = known if path else [*known, *groups()]
    raise ConfigError(
        f"{override.input_line}: there is no setting {'.'.join([*path, step])}; "
        f"{where or 'the configuration'} has {', '.join(candidates)}{_hint(step, candidates)}"
    )


# --- scales of `make reproduce` -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How much `make reproduce` runs: experiments, and a label that marks what is no evidence."""

    name: str
    experiments: list[str]
    label: str = ""


def load_scale(name: str) -> Scale:
    """Read `conf/scale/<name>.yaml`."""
    names = sorted(file.stem for file in (CONFIG_DIRECTORY / "scale").glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"SCALE={name}: allowed are {', '.join(names)}{_hint(name, names)}")
    return Scale(name=name, **yaml.safe_load((CONFIG_DIRECTORY / "scale" / f"{name}.yaml").read_text()))


def ignored_line(config: RunConfig) -> str | None:
    """One line that names the settings the chosen method does not use, if any were given."""
    ignored = ignored_settings(config)
    if not ignored:
        return None
    return f"structure={config.structure.name} does not use {', '.join(ignored)}: left out of this run's identity."
