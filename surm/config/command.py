"""A command line, checked as a whole before anything runs: a typo is one sentence and writes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override

from surm.config.compose import (
    ENTRIES,
    Config,
    Entry,
    Member,
    compose_config,
    compose_members,
    composer,
    groups,
    is_hydras,
    launchers,
    parse_overrides,
    register_schema,
    sweep_members,
    sweep_values,
    to_dataclasses,
)
from surm.records.storage import check_output
from surm.shared.errors import ConfigError
from surm.shared.paths import CONFIG_DIRECTORY
from surm.shared.processes import several
from surm.shared.registry import hint

MULTIRUN = ("-m", "--multirun")
QUESTIONS = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc")


def is_question(arguments: Sequence[str]) -> bool:
    """Whether a command line asks Hydra something, such as `--cfg job` or `--help`, and is to run nothing."""
    return any(argument.partition("=")[0] in QUESTIONS for argument in arguments)


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line is a sweep, rather than one configuration."""
    return any(argument in MULTIRUN for argument in arguments)


def check_command(arguments: Sequence[str], entry: Entry[Config]) -> list[Member[Config]]:
    """Compose and check everything that a script's command line runs.

    Returns:
        The members of a sweep, without those whose method has no such form; or the one member there is.

    Raises:
        ConfigError: one sentence; nothing has been written and no model has been loaded.
    """
    multirun = is_sweep(arguments)
    overrides = [argument for argument in arguments if argument not in MULTIRUN]
    if options := [override for override in overrides if override.startswith("-")]:
        raise ConfigError(
            f"{options[0]}: settings are key=value; beside them there are -m for a sweep, and what only shows "
            "something, such as --cfg job or --help."
        )
    if multirun and several():
        raise ConfigError("-m: several processes share one run, not a sweep; a sweep takes hydra/launcher=joblib.")
    with composer():
        for override in parse_overrides(overrides):
            _check_sweep(override, multirun=multirun)
            _check_group(override, entry)
        members = sweep_members(overrides, entry) if multirun else [overrides]
        root: Any = entry.schema()
        for member in members:
            if entry.resolve is not None:  # which settings there are follows from the groups' values
                chosen = [override for override in member if override.partition("=")[0] in _groups_of(entry)]
                root = to_dataclasses(compose_config(chosen, entry), entry, chosen)
            for override in parse_overrides(member):
                _check_setting(override, root, entry)
        checked = compose_members(members, entry, files=True)
    for folder in {member.config.output_dir for member in checked}:
        check_output(folder)
    return checked


def check_question(arguments: Sequence[str], entry: Entry[Any]) -> None:
    """Refuse overrides that Hydra cannot compose, before it answers a question such as `--cfg job`.

    Raises:
        ConfigError: one sentence.
    """
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    with composer():
        for override in parse_overrides(overrides):
            _check_sweep(override, multirun=is_sweep(arguments))
            _check_group(override, entry)
        if not is_sweep(arguments):
            to_dataclasses(compose_config(overrides, entry), entry, overrides)


def answered(arguments: Sequence[str], entry: Entry[Any], answer: Callable[[], None]) -> bool:
    """Whether a command line is a question, after Hydra has answered it.

    Args:
        arguments: the command line.
        entry: of the script.
        answer: the script's function under `hydra.main`; in the script, whose name and settings the answers show.

    Raises:
        ConfigError: one sentence, for overrides that Hydra cannot compose.
    """
    if not is_question(arguments):
        return False
    check_question(arguments, entry)
    register_schema()
    answer()
    return True


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


def entry_of(experiment: str) -> Entry[Any]:
    """The script that an experiment file is for: it says so by the groups that it overrides.

    Raises:
        ConfigError: there is no such file.
    """
    names = groups()["experiment"]
    if experiment not in names:
        raise ConfigError(f"experiment={experiment}: conf/experiment has {', '.join(names)}{hint(experiment, names)}")
    overridden = _overridden(experiment)
    return next(entry for entry in ENTRIES if overridden <= set(_groups_of(entry)))


def _overridden(experiment: str) -> set[str]:
    """The groups that an experiment file overrides, itself or by the file that it starts from."""
    content = yaml.safe_load((CONFIG_DIRECTORY / "experiment" / f"{experiment}.yaml").read_text())
    groups: set[str] = set()
    for default in content["defaults"]:
        if isinstance(default, dict):
            groups |= {key.removeprefix("override /") for key in default}
        elif default != "_self_":
            groups |= _overridden(default.removeprefix("/experiment/"))
    return groups


def _groups_of(entry: Entry[Any]) -> dict[str, list[str]]:
    """The groups that a script composes, from its primary file."""
    defaults = yaml.safe_load((CONFIG_DIRECTORY / f"{entry.name}.yaml").read_text())["defaults"]
    named = {key.removeprefix("optional ") for default in defaults if isinstance(default, dict) for key in default}
    return {name: values for name, values in groups().items() if name in named}


def _check_group(override: Override, entry: Entry[Any]) -> None:
    """A group's value must exist, and an experiment must be one of this script's; the message names the nearest."""
    key, known = override.get_key_element(), _groups_of(entry)
    for value in _values(override) if key in known else []:
        if value not in known[key]:
            raise ConfigError(f"{key}={value}: conf/{key} has {', '.join(known[key])}{hint(value, known[key])}")
        if key == "experiment" and entry_of(value) is not entry:
            raise ConfigError(f"{override.input_line}: this file is for {entry_of(value).script}; start that.")


def _check_sweep(override: Override, *, multirun: bool) -> None:
    """Several values need -m, and so do launchers; an experiment file has a sweep of its own."""
    key, text = override.get_key_element(), override.input_line
    if key == "hydra/launcher":
        check_launcher(",".join(_values(override)), multirun=multirun)
    elif is_hydras(key) and not multirun:
        raise ConfigError(f"{text}: settings of Hydra's are for the launchers of a sweep; add -m to the command.")
    if override.is_sweep_override() and key == "experiment":
        raise ConfigError(
            f"{text}: a sweep over experiments would apply neither file's own sweep; "
            "start one command for each experiment."
        )
    if override.is_sweep_override() and not multirun:
        raise ConfigError(f"{text}: several values are a sweep; add -m to the command.")


def _check_setting(override: Override, root: Any, entry: Entry[Any]) -> None:
    """A setting's dotted path must exist; the message names the nearest one."""
    key = override.get_key_element().lstrip("+~")
    if key == "hydra" or is_hydras(key) or key in _groups_of(entry):
        if key == "hydra" or override.is_delete():
            raise ConfigError(f"{override.input_line}: a node is chosen, not left out; write {key}=<one of its files>.")
        return
    node: Any = root
    for depth, step in enumerate(key.split(".")):
        if isinstance(node, dict):  # names of its own, such as PEFT's arguments
            return
        known = [f.name for f in fields(node)] if is_dataclass(node) else []
        if step not in known:
            _unknown_setting(override, key.split(".")[:depth], step, known, entry)
        node = getattr(node, step)
    if override.is_delete():
        raise ConfigError(f"{override.input_line}: a setting has a value; write {key}=<value>.")
    if is_dataclass(node):
        raise ConfigError(
            f"{override.input_line}: {key} holds several settings; set one, such as {key}.{fields(node)[0].name}=..."
        )


def _values(override: Override) -> list[str]:
    """What an override gives: its one value, or those of a sweep."""
    if override.is_sweep_override():
        return sweep_values(override)
    return [str(override.value()) if override.value() is not None else "null"]


def _unknown_setting(override: Override, path: list[str], step: str, known: list[str], entry: Entry[Any]) -> NoReturn:
    parent = ".".join(path)
    candidates = known if path else list(dict.fromkeys([*known, *_groups_of(entry)]))
    raise ConfigError(
        f"{override.input_line}: there is no setting {'.'.join([*path, step])}; "
        f"{parent or 'the configuration'} has {', '.join(candidates)}{hint(step, candidates)}"
    )
