"""What a run or a study is asked: dataclass schemas, and checks that need more than one field."""

import math
from collections.abc import Sequence

from surm.config.schema import RunConfig
from surm.data import check_data, data_modality
from surm.methods.base import FORMS
from surm.methods.registry import method_class
from surm.models import check_model, model_modality, model_width
from surm.shared.errors import ConfigError, FormError
from surm.shared.registry import hint
from surm.tuners.config import ACTIVATIONS, POSITIONS, SITES
from surm.tuners.targets import PARTS

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
    _above_zero("optim.head_lr", config.optim.head_lr)
    _above_zero("optim.max_grad_norm", config.optim.max_grad_norm)
    _within("optim.weight_decay", config.optim.weight_decay, 0.0, math.inf)
    _within("optim.warmup_ratio", config.optim.warmup_ratio, 0.0, 1.0)
    _within("optim.beta1", config.optim.beta1, 0.0, 1.0)
    _within("optim.beta2", config.optim.beta2, 0.0, 1.0)
    structure, form = config.structure, config.placement.form
    try:
        method = method_class(structure.name)
        method.resolve(structure, form, model_width(config.model.name, **config.model.origin()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"structure.name={structure.name}: {error}") from None
    try:
        method.check_form(form)
    except ValueError as error:
        raise FormError(f"structure={structure.name} placement.form={form}: {error}") from None


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value}: allowed are {', '.join(allowed)}{hint(value, allowed)}")


def _at_least(key: str, value: int | None, lowest: int) -> None:
    if value is not None and value < lowest:
        raise ConfigError(f"{key}={value}: give a whole number of at least {lowest}.")


def _above_zero(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{key}={value}: give a finite number above 0.")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ConfigError(f"{key}={value}: give a number from {low} to below {high}.")


def ignored_line(config: RunConfig) -> str | None:
    """One line that names the settings the chosen method does not use, if any were given."""
    ignored = method_class(config.structure.name).ignored(config.structure, config.placement.form)
    if not ignored:
        return None
    return f"structure={config.structure.name} does not use {', '.join(ignored)}: left out of this run's identity."
