"""What a run or a study is asked: dataclass schemas, and checks that need more than one field."""

import re
from collections.abc import Sequence

from surm.config.bounds import check_bounds, check_lists
from surm.config.schema import RunConfig, TableConfig
from surm.data import check_data, data_modality, data_options, data_predicts
from surm.methods.base import FORMS
from surm.methods.registry import method_class
from surm.models import check_model, model_modality, model_predicts, model_width
from surm.shared.errors import ConfigError, FormError
from surm.shared.registry import hint
from surm.tuners.checks import ACTIVATIONS, POSITIONS, SITES
from surm.tuners.targets import PARTS

# --- checks across fields -------------------------------------------------------------------------------------------


def validate(config: RunConfig, *, files: bool = True) -> None:
    """Refuse what cannot be run, before any model or data is loaded.

    files: look whether the data are there, too; a plan may be made where they are not.

    Raises:
        ConfigError: one sentence with the value, the rule it breaks and what is allowed.
    """
    check_lists(config)
    check_table(config.table)
    try:
        check_model(config.model.name, **config.model.origin(), image_size=config.model.image_size)
        data_options(config.dataset.name, config.dataset.origin()["options"])
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
    offers, wanted = model_predicts(config.model.name, **config.model.origin()), data_predicts(config.dataset.name)
    if wanted not in offers:
        raise ConfigError(
            f"model={config.model.name} dataset={config.dataset.name}: the model predicts {' or '.join(offers)}, the "
            f"dataset asks for {wanted}; choose a pair that fits."
        )
    _one_of("dataset.evaluate_on", config.dataset.evaluate_on, ("test", "selection"))
    _one_of("placement.form", config.placement.form, FORMS)
    _one_of("placement.sites", config.placement.sites, SITES)
    _one_of("placement.activation", config.placement.activation, ACTIVATIONS)
    _one_of("placement.position", config.placement.position, POSITIONS)
    _one_of("device", config.device, ("auto", "cuda", "mps", "cpu"))
    _one_of("search.by", config.search.by, ("family", "run"))
    if not config.search.seeds:
        raise ConfigError("search.seeds=[]: give one or more seeds that are not reported, as in [100,101].")
    _one_of("optim.schedule", config.optim.schedule, ("linear", "cosine", "constant"))
    _one_of("trainer.precision", config.trainer.precision, ("no", "bf16", "fp16"))
    _one_of("tracking.name", config.tracking.name, ("none", "wandb"))
    _one_of("tracking.mode", config.tracking.mode, ("online", "offline"))
    parts = config.placement.parts
    if not parts or len(set(parts)) < len(parts) or set(parts) - set(PARTS):
        raise ConfigError(
            f"placement.parts={parts}: give one or more of {', '.join(PARTS)}, each once, as in placement=weight_qv."
        )
    structure, form = config.structure, config.placement.form
    try:
        method = method_class(structure.name)
        method.resolve(structure, form, model_width(config.model.name, **config.model.origin()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"structure.name={structure.name}: {error}") from None
    if wanted == "tokens" and method.trains_head_alone:
        raise ConfigError(
            f"structure={structure.name} dataset={config.dataset.name}: a language model has no new head to train; "
            "choose a method that trains its layers."
        )
    if config.trainer.gradient_checkpointing and not method.recomputes:
        raise ConfigError(
            f"structure={structure.name} trainer.gradient_checkpointing=true: the method keeps keys and values between "
            "layers, which cannot be computed again; leave gradient_checkpointing out."
        )
    check_bounds(config)
    try:
        method.check_form(form)
    except ValueError as error:
        raise FormError(f"structure={structure.name} placement.form={form}: {error}") from None


def check_table(table: TableConfig) -> None:
    """Refuse names of an experiment that would be written or read outside their folders.

    Raises:
        ConfigError: one sentence.
    """
    for key, name in (("name", table.name), ("published", table.published)):
        if name and not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f"table.{key}={name}: it names a file; give letters, digits, and _ . - between them.")


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value}: allowed are {', '.join(allowed)}{hint(value, allowed)}")


def ignored_line(config: RunConfig) -> str | None:
    """One line that names the settings the chosen method does not use, if any were given."""
    ignored = method_class(config.structure.name).ignored(config.structure, config.placement.form)
    if not ignored:
        return None
    return f"structure={config.structure.name} does not use {', '.join(ignored)}: left out of this run's identity."
