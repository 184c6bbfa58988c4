"""Composing `conf/` without `hydra.main`: overrides to checked dataclasses, for one run and for the members of a sweep.

`hydra.main` would create folders before a typo is seen, and composes each member of a sweep as a whole.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from surm.config.checks import validate
from surm.config.machine import cores_each, gpus, gpus_each, workers
from surm.config.schema import RunConfig
from surm.shared.errors import ConfigError, FormError, UserError, first_line
from surm.shared.paths import CONFIG_DIRECTORY

Config = TypeVar("Config")

MOST_MEMBERS = 10_000  # of a sweep


@dataclass(frozen=True)
class Entry(Generic[Config]):
    """What a script composes: `conf/<name>.yaml`, its schema, and the checks of the composed configuration."""

    name: str
    script: str
    schema: type[Config]
    validate: Callable[[Config], None]
    seeds: Callable[[str, int], str]  # the override by which an experiment, given by name, runs that many seeds
    # Fills in the nodes whose type the configuration itself chooses, such as a study's options.
    resolve: Callable[[DictConfig, Config], None] | None = None


ENTRIES: list[Entry[Any]] = []
"""All entries: those of rooms above this one are added there, by `register`."""


def register(entry: Entry[Config]) -> Entry[Config]:
    """Add an entry, for Hydra's schemas and for the question which script an experiment file is for."""
    ENTRIES.append(entry)
    return entry


def _seeds(experiment: str, number: int) -> str:
    return f"seed={','.join(map(str, range(number)))}"


TRAIN = register(Entry("config", "scripts/train.py", RunConfig, validate, _seeds))


@dataclass(frozen=True)
class Member(Generic[Config]):
    """One of the jobs of a command: its overrides, without those of Hydra, and its checked configuration."""

    overrides: list[str]
    config: Config


# --- Hydra's registries -----------------------------------------------------------------------------------------------


def register_schema() -> None:
    """Tell Hydra the schemas that the primary files of `conf/` name first, and what launchers are configured by."""
    store = ConfigStore.instance()
    for entry in ENTRIES:
        store.store(name=f"{entry.name}_schema", node=entry.schema)
    Plugins.instance()  # stores the schemas of the launchers that are installed
    stored = store.repo["hydra"]["launcher"]
    for name in launchers():
        # Under a name of its own: Hydra takes a schema for that of a file of the same name, but says it soon will not.
        if schema := stored.pop(f"{name}.yaml", None) if name != "basic" else None:
            store.store(group="hydra/launcher", name=f"{name}_schema", node=schema.node)
    for resolver in (gpus, workers, gpus_each, cores_each):
        OmegaConf.register_new_resolver(f"surm.{resolver.__name__}", resolver, replace=True)
    OmegaConf.register_new_resolver("surm.of", _of, replace=True)


def _of(key: str, table: Mapping[str, Any]) -> Any:
    """`${surm.of:${dataset.name}, {glue/rte: 50, glue/mrpc: 30}}`: what a paper takes for a data set, say."""
    if key not in table:
        raise ValueError(f"nothing is given for {key}: choose one of {', '.join(table)}, or give the value itself")
    return table[key]


@contextmanager
def composer() -> Iterator[None]:
    """Open `conf/` for several compositions; leaves no trace for `hydra.main`."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield


@contextmanager
def one_sentence(overrides: Sequence[str]) -> Iterator[None]:
    """What Hydra and OmegaConf raise for overrides, of whatever type, as a `ConfigError` that names them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise ConfigError(f"{' '.join(overrides)}: {first_line(reason)}.") from None


def groups() -> dict[str, list[str]]:
    """Config groups and the names each offers."""
    folders = (path for path in CONFIG_DIRECTORY.iterdir() if path.is_dir() and path.name not in ("scale", "hydra"))
    return {
        folder.name: sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
        for folder in sorted(folders)
    }


def launchers() -> list[str]:
    """The names of `hydra/launcher`."""
    return ["basic", *sorted(file.stem for file in (CONFIG_DIRECTORY / "hydra" / "launcher").glob("*.yaml"))]


# --- overrides to one configuration; all inside `composer()` ----------------------------------------------------------


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them; glob(...) is of the files of `conf/`.

    Raises:
        ConfigError: one is not of the form key=value.
    """
    hydra = GlobalHydra.instance().hydra
    parser = OverridesParser.create(hydra.config_loader if hydra else None)
    return [_parse(override, parser) for override in overrides]


def _parse(override: str, parser: OverridesParser) -> Override:
    try:
        return parser.parse_overrides([override])[0]
    except Exception as error:  # the grammar's functions raise types of their own
        key, equals, value = override.partition("=")
        if isinstance(error, HydraException) and str(error).startswith("Lexer") and key and equals:
            raise ConfigError(
                f"{override}: Hydra takes a value with such characters in quotes of its own: '{key}=\"{value}\"'."
            ) from None
        raise ConfigError(f"{override}: {first_line(error)}; write settings as key=value.") from None


def is_hydras(override: str) -> bool:
    """Whether an override is one of Hydra's own, such as hydra/launcher=joblib, and no setting of a run."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def compose_config(overrides: Sequence[str], entry: Entry[Any], *, with_hydra: bool = False) -> DictConfig:
    """The configuration as Hydra composes it, not yet checked."""
    with one_sentence(overrides):
        return compose(entry.name, overrides=list(overrides), return_hydra_config=with_hydra)


def to_dataclasses(config: DictConfig, entry: Entry[Config], overrides: Sequence[str] = ()) -> Config:
    """A composed configuration as dataclasses, not yet checked.

    overrides: what it was composed of, for the message.
    """
    with one_sentence(overrides):
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise ConfigError(f"{missing[0]}=???: give a value.")
        typed_config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(entry.schema), config))
        assert isinstance(typed_config, entry.schema)
        if entry.resolve is not None:
            entry.resolve(config, typed_config)
    return typed_config


def typed(config: DictConfig, entry: Entry[Config], overrides: Sequence[str] = ()) -> Config:
    """A composed configuration as dataclasses, checked; `overrides` as for `to_dataclasses`."""
    typed_config = to_dataclasses(config, entry, overrides)
    entry.validate(typed_config)
    return typed_config


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """One run's checked configuration."""
    return typed(compose_config(overrides, TRAIN), TRAIN, overrides)


# --- overrides to the members of a sweep; all inside `composer()` -----------------------------------------------------


def compose_sweep(overrides: Sequence[str], entry: Entry[Any] = TRAIN, *, files: bool = False) -> list[Member[Any]]:
    """Every member of a sweep, checked, without those whose method has no such form.

    files: check that the data are there, too.
    """
    return compose_members(sweep_members(overrides, entry), entry, files=files)


def sweep_members(overrides: Sequence[str], entry: Entry[Any] = TRAIN) -> list[list[str]]:
    """The override lists that `-m` runs: the experiment file's own sweep, with the command line's values first."""
    parsed = parse_overrides(overrides)
    swept = {o.get_key_element() for o in parsed}
    single = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    own = compose_config(single, entry, with_hydra=True).hydra.sweeper.params or {}
    from_file = [f"{key}={value}" for key, value in own.items() if key not in swept]
    every = parse_overrides([*from_file, *overrides])
    members = math.prod(len(sweep_values(override)) for override in every if override.is_sweep_override())
    if members > MOST_MEMBERS:
        raise ConfigError(f"{' '.join(overrides)}: a sweep has at most {MOST_MEMBERS:,} members; divide it.")
    with one_sentence(overrides):
        return [list(member) for member in BasicSweeper.split_arguments(every, max_batch_size=None)[0]]


def sweep_values(override: Override) -> list[str]:
    """The values of a sweep over one setting.

    Raises:
        ConfigError: there are none, too many, or none that can be counted.
    """
    text = override.input_line or ""
    with one_sentence([text]):
        if not override.is_discrete_sweep():
            raise ConfigError(f"{text}: a sweep takes single values; list them with commas, or write choice or range.")
        value = override.value()  # a range that is to be shuffled would be unrolled at once
        every = map(str, value.range()) if isinstance(value, RangeSweep) else override.sweep_string_iterator()
        values = list(islice(every, MOST_MEMBERS + 1))
    if not values:
        raise ConfigError(f"{text}: that is no value at all; give at least one.")
    if len(values) > MOST_MEMBERS:
        raise ConfigError(f"{text}: a sweep has at most {MOST_MEMBERS:,} members; divide it.")
    return values


def compose_members(members: Sequence[list[str]], entry: Entry[Any], *, files: bool) -> list[Member[Any]]:
    """The members of a sweep, given by their overrides, with checked configurations and without the holes."""
    if entry is TRAIN:
        return _compose_by_node(members, files=files)
    return [Member(_told(member), typed(compose_config(member, entry), entry, member)) for member in members]


def _told(member: Sequence[str]) -> list[str]:
    return [override for override in member if not is_hydras(override)]


def _compose_by_node(members: Sequence[list[str]], *, files: bool) -> list[Member[RunConfig]]:
    """The members of a sweep over runs.

    A node of the configuration is composed once for each of its own values, and of those of the nodes that it refers to
    in the first member, not once for each member: composing takes some 80 ms, and a table of the paper has hundreds of
    members. Where an override refers to a node, each member is composed as a whole.
    """
    whole = any("$" in override for member in members for override in member)
    unresolved = compose_config(members[0], TRAIN)
    plain: Any = OmegaConf.to_container(unresolved)
    reads = {node: set(re.findall(r"\$\{(\w+)\.", str(values))) - {node} for node, values in plain.items()}
    fixed = set(members[0]).intersection(*members)

    def swept(member: list[str]) -> dict[str, list[str]]:
        by_node: dict[str, list[str]] = {}
        for override in member:
            if override not in fixed:
                own = _node(override)
                for node in (own, *(other for other, read in reads.items() if own in read)):
                    by_node.setdefault(node, []).append(override)
        return by_node

    def composed_whole(overrides: list[str]) -> RunConfig:
        return to_dataclasses(compose_config(overrides, TRAIN), TRAIN, overrides)

    first = to_dataclasses(unresolved, TRAIN, members[0])
    configs = {tuple(values): first for values in swept(members[0]).values()}
    composed: list[Member[RunConfig]] = []
    for member in members:
        chosen = {}
        for node, values in ({} if whole else swept(member)).items():
            if tuple(values) not in configs:
                # The other nodes need some value: the first member's.
                told = set(map(_node, values))
                others = [override for override in members[0] if override in fixed or _node(override) not in told]
                configs[tuple(values)] = composed_whole([*others, *values])
            chosen[node] = getattr(configs[tuple(values)], node)
        config = composed_whole(member) if whole else replace(first, **chosen)
        with suppress(FormError):
            validate(config, files=files)
            composed.append(Member(_told(member), config))
    if not composed:
        validate(first, files=files)  # raises what is wrong with it
    return composed


def _node(override: str) -> str:
    """The node of the configuration that an override is in: `structure` of structure=lora and of structure.rank=2."""
    return override.split("=")[0].lstrip("+~").split(".")[0]
