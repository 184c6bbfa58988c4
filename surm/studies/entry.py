"""How a study is asked: its configuration, its checks, and what its parts are asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from surm import structures
from surm.config.bounds import GREATEST, MILLION, Bounds, check_bounds, check_lists
from surm.config.checks import check_table
from surm.config.compose import Entry, compose_config, register, typed
from surm.config.schema import TableConfig
from surm.records.recorded import Recorded
from surm.shared.errors import ConfigError, first_line
from surm.studies.registry import SCIENCE_VERSION, STUDIES


@dataclass
class ApproximateConfig:
    """A study without a backbone; `study` holds one of the options classes of `surm.studies`."""

    study: Any = None
    table: TableConfig = field(default_factory=TableConfig)
    output_dir: str = "outputs"


STUDY_BOUNDS = {
    "study.draws": Bounds(1, 10_000),
    "study.low_rank": Bounds(1, 10_000),
    "study.terms": Bounds(1, 10_000),
    "study.cold_starts": Bounds(1, 10_000),
    "study.descent_starts": Bounds(1, 10_000),
    "study.tolerance": Bounds(0, 1, above=True),
    "study.descent_steps": Bounds(1, MILLION),
    "study.descent_rate": Bounds(0, GREATEST, above=True),
    "study.near_rank": Bounds(1, 10_000),
    "study.near_ranks": Bounds(1, 10_000),
    "study.seeds": Bounds(0, 2**32 - 1),
    "study.epochs": Bounds(1, MILLION),
    "study.points": Bounds(1, MILLION),
    "study.noise": Bounds(0, GREATEST),
    "study.rate": Bounds(0, GREATEST, above=True),
    "study.rates": Bounds(0, GREATEST, above=True),
}
"""As `surm.config.bounds.BOUNDS`; a study's own checks may narrow them."""


def validate_study(config: ApproximateConfig) -> None:
    """Refuse a study that cannot be computed.

    Raises:
        ConfigError: one sentence with the value, the rule it breaks and what is allowed.
    """
    check_lists(config)
    check_table(config.table)
    check_lists(config.study, "study.")
    check_bounds(config.study, STUDY_BOUNDS, "study.")
    try:
        STUDIES[config.study.name].validate(config.study)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _resolve(composed: DictConfig, config: ApproximateConfig) -> None:
    """The options of the chosen study, as their own dataclass."""
    node = composed.study
    try:
        config.study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(STUDIES[node.name].options), node))
    except OmegaConfBaseException as error:
        raise ConfigError(f"study={node.name}: {first_line(error)}.") from None


def _seeds(experiment: str, number: int) -> str:
    """A study of matrices counts its draws, one of trained networks lists its seeds."""
    study = compose_study([f"experiment={experiment}"]).study
    return f"study.draws={number}" if hasattr(study, "draws") else f"study.seeds={list(range(number))}".replace(" ", "")


APPROXIMATE = register(
    Entry("approximate", "scripts/approximate.py", ApproximateConfig, validate_study, _seeds, _resolve)
)


def compose_study(overrides: Sequence[str]) -> ApproximateConfig:
    """One study's checked configuration; call inside `composer()`."""
    return typed(compose_config(overrides, APPROXIMATE), APPROXIMATE, overrides)


@dataclass(frozen=True)
class Part(Recorded):
    """One part of a study, which one record answers."""

    config: ApproximateConfig
    part: dict[str, Any]  # what `compute` is asked

    @cached_property
    def asked(self) -> dict[str, Any]:
        versions = {"experiments": SCIENCE_VERSION, "structures": structures.SCIENCE_VERSION}
        return {"study": {"name": self.config.study.name, **self.part}, "science_version": versions}

    @property
    def output_dir(self) -> str:
        return self.config.output_dir
