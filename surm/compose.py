"""Composing `conf/` outside Hydra: what a command line means, checked before Hydra takes over.

A typo is one sentence and writes nothing, whereas Hydra would create folders first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import joblib
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from surm.config import ApproximateConfig, ConfigError, FormError, RunConfig, hint, validate, validate_study
from surm.experiments import STUDIES
from surm.processes import several

CONFIG_DIRECTORY = Path(__file__).resolve().parents[1] / "conf"

MULTIRUN = ("-m", "--multirun")

Config = TypeVar("Config")


@dataclass(frozen=True)
class Entry(Generic[Config]):
    """What a script composes: `conf/<name>.yaml`, its schema, and the checks of the composed configuration."""

    name: str
    script: str
    schema: type[Config]
    validate: Callable[[Config], None]


TRAIN = Entry("config", "scripts/train.py", RunConfig, validate)
APPROXIMATE = Entry("approximate", "scripts/approximate.py", ApproximateConfig, validate_study)


@dataclass(frozen=True)
class Member(Generic[Config]):
    """One job of a command, of which a sweep has several: what it was told, and the checked configuration."""

    overrides: list[str]
    config: Config


def register_schema() -> None:
    """Tell Hydra the schemas that the primary files of `conf/` name first, and what launchers are configured by."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    store.store(name="schema_approximate", node=ApproximateConfig)
    Plugins.instance()  # stores the schemas of the launchers that are installed
    stored = store.repo["hydra"]["launcher"]
    for name in launchers():
        # Under a name of its own: Hydra takes a schema for that of a file of the same name, but says it soon will not.
        if schema := stored.pop(f"{name}.yaml", None) if name != "basic" else None:
            store.store(group="hydra/launcher", name=f"{name}_schema", node=schema.node)
    for resolver in (gpus, workers, gpus_each, cores_each):
        OmegaConf.register_new_resolver(f"surm.{resolver.__name__}", resolver, replace=True)


# What this machine offers to a sweep, as `${surm.<name>:}` in conf/hydra/launcher.


def gpus() -> int:
    return torch.cuda.device_count()


def workers() -> int:
    """How many runs go on at once: one for each GPU, or one for each core where there is none."""
    return gpus() or int(joblib.cpu_count())


def gpus_each() -> int:
    return min(1, gpus())


def cores_each() -> int:
    return max(1, int(joblib.cpu_count()) // workers())


def typed(config: DictConfig, entry: Entry[Config]) -> Config:
    """The composed configuration as dataclasses, checked."""
    found = _to_dataclasses(config, entry)
    entry.validate(found)
    return found


def _to_dataclasses(config: DictConfig, entry: Entry[Config]) -> Config:
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(entry.schema), config))
    assert isinstance(found, entry.schema)
    if isinstance(found, ApproximateConfig):
        found.study = _study_options(config.study)
    return found


def _study_options(node: DictConfig) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(STUDIES[node.name].options), node))
    except OmegaConfBaseException as error:
        raise ConfigError(f"study={node.name}: {_first_line(error)}.") from None


@contextmanager
def composer() -> Iterator[None]:
    """Open `conf/` for several calls of `compose_run`; leaves no trace for `hydra.main`."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """One run's checked configuration; call inside `composer()`."""
    return typed(_compose(overrides, TRAIN), TRAIN)


def compose_sweep(overrides: Sequence[str], *, files: bool = False) -> list[RunConfig]:
    """Every member of a sweep, checked, without those whose method has no such form; call inside `composer()`.

    files: check that the data are there, too.

    """
    return [member.config for member in compose_members(sweep_members(overrides), files=files)]


def compose_members(members: Sequence[list[str]], *, files: bool) -> list[Member[RunConfig]]:
    """The members of a sweep with their checked configurations, without the holes; call inside `composer()`.

    A node of the configuration is composed once for each of its own values, not once for each member: composing takes
    some 80 ms, and a table of the paper has hundreds of members. No node of `conf/` refers to another.
    """
    fixed = set(members[0]).intersection(*members)

    def swept(member: list[str]) -> dict[str, list[str]]:
        by_axis: dict[str, list[str]] = {}
        for override in member:
            if override not in fixed:
                by_axis.setdefault(_axis(override), []).append(override)
        return by_axis

    first = _to_dataclasses(_compose(members[0], TRAIN), TRAIN)
    nodes = {tuple(values): getattr(first, axis) for axis, values in swept(members[0]).items()}
    found: list[Member[RunConfig]] = []
    for member in members:
        chosen = {}
        for axis, values in swept(member).items():
            if tuple(values) not in nodes:
                # The other axes need some value: the first member's.
                others = [override for override in members[0] if override in fixed or _axis(override) != axis]
                nodes[tuple(values)] = getattr(_to_dataclasses(_compose([*others, *values], TRAIN), TRAIN), axis)
            chosen[axis] = nodes[tuple(values)]
        config = replace(first, **chosen)
        with suppress(FormError):
            validate(config, files=files)
            found.append(Member(member, config))
    if not found:
        validate(first, files=files)
    return found


def _axis(override: str) -> str:
    return override.split("=")[0].lstrip("+~").split(".")[0]


def compose_study(overrides: Sequence[str]) -> ApproximateConfig:
    """One study's checked configuration; call inside `composer()`."""
    return typed(_compose(overrides, APPROXIMATE), APPROXIMATE)


def sweep_members(overrides: Sequence[str], entry: Entry[Any] = TRAIN) -> list[list[str]]:
    """The override lists that `-m` runs: the experiment file's own sweep, with the command line's values first.

    Call inside `composer()`.
    """
    parsed = _parse(overrides)
    swept = {o.get_key_element() for o in parsed}
    single = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    own = _compose(single, entry, with_hydra=True).hydra.sweeper.params or {}
    from_file = [f"{key}={value}" for key, value in own.items() if key not in swept]
    batches = BasicSweeper.split_arguments(_parse([*from_file, *overrides]), max_batch_size=None)
    return [list(member) for member in batches[0]]


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line is a sweep that is to be run, rather than one configuration or a question to Hydra."""
    return any(argument in MULTIRUN for argument in arguments) and all(
        argument in MULTIRUN for argument in arguments if argument.startswith("-")
    )


def check_command(arguments: Sequence[str], entry: Entry[Config]) -> list[Member[Config]]:
    """Compose and check everything that a script's command line would run.

    Returns:
        The members of a sweep, without those whose method has no such form; or the one member there is.

    Raises:
        ConfigError: one sentence; nothing has been written and no model has been loaded.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    multirun = any(argument in MULTIRUN for argument in arguments)
    if multirun and several():
        raise ConfigError("-m: several processes share one run, not a sweep; a sweep takes hydra/launcher=joblib.")
    root: Any = entry.schema()
    for override in _parse(overrides):
        _check_group(override, entry)
        if override.get_key_element() == "hydra/launcher":
            check_launcher(",".join(_values(override)), multirun=multirun)
        if override.is_sweep_override() and override.get_key_element() == "experiment":
            raise ConfigError(
                f"{override.input_line}: a sweep over experiments would apply neither file's own sweep; "
                "start one command for each experiment."
            )
        if override.is_sweep_override() and not multirun:
            raise ConfigError(f"{override.input_line}: several values are a sweep; add -m to the command.")
    with composer():
        members = sweep_members(overrides, entry) if multirun else [list(overrides)]
        for member in members:
            if entry.schema is ApproximateConfig:
                chosen = [override for override in member if override.startswith(("study=", "experiment="))]
                root.study = typed(_compose(chosen, APPROXIMATE), APPROXIMATE).study
            for override in _parse(member):
                _check_setting(override, root, entry)
        if multirun and entry.schema is RunConfig:
            return compose_members(members, files=True)  # type: ignore[return-value]
        return [Member(member, typed(_compose(member, entry), entry)) for member in members]


def launchers() -> list[str]:
    """The names of `hydra/launcher`."""
    return ["basic", *sorted(file.stem for file in (CONFIG_DIRECTORY / "hydra" / "launcher").glob("*.yaml"))]


def check_launcher(name: str, *, multirun: bool = True) -> None:
    """Refuse a launcher that is not there, before anything is started.

    Raises:
        ConfigError: one sentence; where a package is missing, it names the extra that brings it.
    """
    if name not in launchers():
        raise ConfigError(f"hydra/launcher={name}: allowed are {', '.join(launchers())}{hint(name, launchers())}")
    if name != "basic" and not multirun:
        raise ConfigError(f"hydra/launcher={name}: launchers start the jobs of a sweep; add -m to the command.")
    register_schema()
    if name != "basic" and f"{name}_schema.yaml" not in ConfigStore.instance().list("hydra/launcher"):
        extra = name.partition("_")[0]
        raise ConfigError(
            f"hydra/launcher={name}: the package that brings it is not installed; "
            f"`make launchers` installs all of them, pip install 'surm[{extra}]' this one."
        )


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {_first_line(error)}; write settings as key=value.") from None


def _compose(overrides: Sequence[str], entry: Entry[Any], *, with_hydra: bool = False) -> DictConfig:
    try:
        return compose(entry.name, overrides=list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise ConfigError(f"{' '.join(overrides)}: {_first_line(reason)}.") from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def groups() -> dict[str, list[str]]:
    """Config groups and the names each offers."""
    folders = (path for path in CONFIG_DIRECTORY.iterdir() if path.is_dir() and path.name not in ("scale", "hydra"))
    return {
        folder.name: sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
        for folder in sorted(folders)
    }


def entry_of(experiment: str) -> Entry[Any]:
    """The script that an experiment file is for: it says so by the group that it overrides.

    Raises:
        ConfigError: there is no such file.
    """
    names = groups()["experiment"]
    if experiment not in names:
        raise ConfigError(f"experiment={experiment}: conf/experiment has {', '.join(names)}{hint(experiment, names)}")
    content = yaml.safe_load((CONFIG_DIRECTORY / "experiment" / f"{experiment}.yaml").read_text())
    return APPROXIMATE if any("override /study" in default for default in content["defaults"]) else TRAIN


def _groups_of(entry: Entry[Any]) -> dict[str, list[str]]:
    """The groups that a script composes, from its primary file."""
    defaults = yaml.safe_load((CONFIG_DIRECTORY / f"{entry.name}.yaml").read_text())["defaults"]
    named = {key.removeprefix("optional ") for default in defaults if isinstance(default, dict) for key in default}
    return {name: values for name, values in groups().items() if name in named}


def _check_group(override: Override, entry: Entry[Any]) -> None:
    """A group's value must exist, and an experiment must be one of this script's; the message names the nearest."""
    key, known = override.get_key_element(), _groups_of(entry)
    for value in _values(override) if key in known else []:
        if value not in (*known[key], "null"):
            raise ConfigError(f"{key}={value}: conf/{key} has {', '.join(known[key])}{hint(value, known[key])}")
        if key == "experiment" and value != "null" and entry_of(value) is not entry:
            raise ConfigError(f"{override.input_line}: this file is for {entry_of(value).script}; start that.")


def _check_setting(override: Override, root: Any, entry: Entry[Any]) -> None:
    """A setting's dotted path must exist; the message names the nearest one."""
    key = override.get_key_element().lstrip("+~")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or key in _groups_of(entry):
        return
    node: Any = root
    for depth, step in enumerate(key.split(".")):
        if isinstance(node, dict):  # names of its own, such as PEFT's arguments
            return
        known = [f.name for f in fields(node)] if is_dataclass(node) else []
        if step not in known:
            _unknown_setting(override, key.split(".")[:depth], step, known, entry)
        node = getattr(node, step)
    if is_dataclass(node):
        raise ConfigError(
            f"{override.input_line}: {key} holds several settings; set one, such as {key}.{fields(node)[0].name}=..."
        )


def _values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [str(override.value()) if override.value() is not None else "null"]


def _unknown_setting(override: Override, path: list[str], step: str, known: list[str], entry: Entry[Any]) -> NoReturn:
    where = ".".join(path)
    candidates = known if path else list(dict.fromkeys([*known, *_groups_of(entry)]))
    raise ConfigError(
        f"{override.input_line}: there is no setting {'.'.join([*path, step])}; "
        f"{where or 'the configuration'} has {', '.join(candidates)}{hint(step, candidates)}"
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
        raise ConfigError(f"SCALE={name}: allowed are {', '.join(names)}{hint(name, names)}")
    return Scale(name=name, **yaml.safe_load((CONFIG_DIRECTORY / "scale" / f"{name}.yaml").read_text()))
