"""Composing `conf/` outside Hydra: what a command line means, checked before Hydra takes over.

A typo is one sentence and writes nothing, whereas Hydra would create folders first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

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

from surm.config.checks import validate
from surm.config.machine import cores_each, gpus, gpus_each, workers
from surm.config.schema import RunConfig
from surm.shared.errors import ConfigError, FormError
from surm.shared.paths import CONFIG_DIRECTORY

Config = TypeVar("Config")


@dataclass(frozen=True)
class Entry(Generic[Config]):
    """What a script composes: `conf/<name>.yaml`, its schema, and the checks of the composed configuration."""

    name: str
    script: str
    schema: type[Config]
    validate: Callable[[Config], None]
    # Fills in the nodes whose type the configuration itself chooses, such as a study's options.
    resolve: Callable[[DictConfig, Config], None] | None = None

    @property
    def schema_name(self) -> str:
        """What the primary file calls the schema in its `defaults`."""
        return "schema" if self.name == "config" else f"schema_{self.name}"


ENTRIES: list[Entry[Any]] = []
"""What scripts compose, in rooms above this one too: each entry adds itself by `register`."""


def register(entry: Entry[Config]) -> Entry[Config]:
    """Make an entry known to Hydra and to whoever asks which script an experiment file is for."""
    ENTRIES.append(entry)
    return entry


TRAIN = register(Entry("config", "scripts/train.py", RunConfig, validate))


@dataclass(frozen=True)
class Member(Generic[Config]):
    """One job of a command, of which a sweep has several: what it was told, and the checked configuration."""

    overrides: list[str]
    config: Config


def register_schema() -> None:
    """Tell Hydra the schemas that the primary files of `conf/` name first, and what launchers are configured by."""
    store = ConfigStore.instance()
    for entry in ENTRIES:
        store.store(name=entry.schema_name, node=entry.schema)
    Plugins.instance()  # stores the schemas of the launchers that are installed
    stored = store.repo["hydra"]["launcher"]
    for name in launchers():
        # Under a name of its own: Hydra takes a schema for that of a file of the same name, but says it soon will not.
        if schema := stored.pop(f"{name}.yaml", None) if name != "basic" else None:
            store.store(group="hydra/launcher", name=f"{name}_schema", node=schema.node)
    for resolver in (gpus, workers, gpus_each, cores_each):
        OmegaConf.register_new_resolver(f"surm.{resolver.__name__}", resolver, replace=True)


def typed(config: DictConfig, entry: Entry[Config]) -> Config:
    """The composed configuration as dataclasses, checked."""
    found = to_dataclasses(config, entry)
    entry.validate(found)
    return found


def to_dataclasses(config: DictConfig, entry: Entry[Config]) -> Config:
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(entry.schema), config))
    assert isinstance(found, entry.schema)
    if entry.resolve is not None:
        entry.resolve(config, found)
    return found


@contextmanager
def composer() -> Iterator[None]:
    """Open `conf/` for several calls of `compose_run`; leaves no trace for `hydra.main`."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        yield


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """One run's checked configuration; call inside `composer()`."""
    return typed(compose_config(overrides, TRAIN), TRAIN)


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

    first = to_dataclasses(compose_config(members[0], TRAIN), TRAIN)
    nodes = {tuple(values): getattr(first, axis) for axis, values in swept(members[0]).items()}
    found: list[Member[RunConfig]] = []
    for member in members:
        chosen = {}
        for axis, values in swept(member).items():
            if tuple(values) not in nodes:
                # The other axes need some value: the first member's.
                others = [override for override in members[0] if override in fixed or _axis(override) != axis]
                nodes[tuple(values)] = getattr(to_dataclasses(compose_config([*others, *values], TRAIN), TRAIN), axis)
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


def sweep_members(overrides: Sequence[str], entry: Entry[Any] = TRAIN) -> list[list[str]]:
    """The override lists that `-m` runs: the experiment file's own sweep, with the command line's values first.

    Call inside `composer()`.
    """
    parsed = parse_overrides(overrides)
    swept = {o.get_key_element() for o in parsed}
    single = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    own = compose_config(single, entry, with_hydra=True).hydra.sweeper.params or {}
    from_file = [f"{key}={value}" for key, value in own.items() if key not in swept]
    batches = BasicSweeper.split_arguments(parse_overrides([*from_file, *overrides]), max_batch_size=None)
    return [list(member) for member in batches[0]]


def launchers() -> list[str]:
    """The names of `hydra/launcher`."""
    return ["basic", *sorted(file.stem for file in (CONFIG_DIRECTORY / "hydra" / "launcher").glob("*.yaml"))]


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"{' '.join(overrides)}: {first_line(error)}; write settings as key=value.") from None


def compose_config(overrides: Sequence[str], entry: Entry[Any], *, with_hydra: bool = False) -> DictConfig:
    try:
        return compose(entry.name, overrides=list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise ConfigError(f"{' '.join(overrides)}: {first_line(reason)}.") from None


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def groups() -> dict[str, list[str]]:
    """Config groups and the names each offers."""
    folders = (path for path in CONFIG_DIRECTORY.iterdir() if path.is_dir() and path.name not in ("scale", "hydra"))
    return {
        folder.name: sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
        for folder in sorted(folders)
    }
