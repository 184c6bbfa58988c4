"""The least and the greatest value of every number of the schema, and the kinds of the entries of its lists."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from surm.shared.errors import ConfigError


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; `above` and `below` leave out its ends."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number lies within; NaN lies nowhere."""
        high = value < self.high if self.below else value <= self.high
        return high and (value > self.low if self.above else value >= self.low)

    def __str__(self) -> str:
        return (
            f"{'above' if self.above else 'of at least'} {self.low:,} "
            f"and {'below' if self.below else 'at most'} {self.high:,}"
        )


MILLION = 1_000_000
WIDEST = 65_536  # of a layer
GREATEST = 1e30  # within float32

BOUNDS = {
    "model.image_size": Bounds(1, 4096),
    "model.dropout": Bounds(0.0, 1.0, below=True),
    "dataset.fraction": Bounds(0, 1, above=True),
    "dataset.pairs": Bounds(2, MILLION),
    "dataset.block_size": Bounds(8, MILLION),
    "structure.alpha": Bounds(-GREATEST, GREATEST),
    "structure.dropout": Bounds(0.0, 1.0, below=True),
    "structure.terms": Bounds(1, WIDEST),
    "structure.factors": Bounds(1, WIDEST),
    "structure.factor_shape": Bounds(1, WIDEST),
    "structure.rank": Bounds(1, WIDEST),
    "structure.block_size": Bounds(1, WIDEST),
    "structure.blocks": Bounds(1, WIDEST),
    "structure.outer": Bounds(1, WIDEST),
    "structure.outer_seed": Bounds(0, 2**32 - 1),
    "structure.size": Bounds(1, WIDEST),
    "structure.outer_rank": Bounds(1, WIDEST),
    "structure.std": Bounds(0, GREATEST, above=True),
    "structure.target_rank": Bounds(0, WIDEST, above=True),
    "structure.penalty": Bounds(0.0, GREATEST),
    "structure.prune_start": Bounds(0.0, 1.0, below=True),
    "structure.prune_end": Bounds(0.0, 1.0, below=True),
    "structure.prune_every": Bounds(0.0, 1.0, below=True),
    "structure.smoothing": Bounds(0.0, 1.0, below=True),
    "structure.tokens": Bounds(1, WIDEST),
    "structure.dropped_layers": Bounds(1, WIDEST),
    "structure.num_heads": Bounds(1, WIDEST),
    "structure.layers": Bounds(1, WIDEST),
    "structure.head_first": Bounds(0.0, 1.0, below=True),
    "optim.lr": Bounds(0, GREATEST, above=True),
    "optim.head_lr": Bounds(0, GREATEST, above=True),
    "optim.weight_decay": Bounds(0.0, GREATEST),
    "optim.beta1": Bounds(0.0, 1.0, below=True),
    "optim.beta2": Bounds(0.0, 1.0, below=True),
    "optim.warmup_ratio": Bounds(0.0, 1.0, below=True),
    "optim.max_grad_norm": Bounds(0, GREATEST, above=True),
    "search.values": Bounds(3, 100),
    "search.seeds": Bounds(0, 2**32 - 1),
    "trainer.epochs": Bounds(1, MILLION),
    "trainer.batch_size": Bounds(1, MILLION),
    "trainer.gradient_accumulation": Bounds(1, MILLION),
    "trainer.max_steps": Bounds(1, 1000 * MILLION),
    "trainer.evaluate_every": Bounds(1, MILLION),
    "trainer.eval_batch_size": Bounds(1, MILLION),
    "trainer.log_every": Bounds(1, 1000 * MILLION),
    "trainer.checkpoint_every": Bounds(1, 1000 * MILLION),
    "trainer.threads": Bounds(1, 1024),  # torch ends the process where the system starts no more
    "trainer.workers": Bounds(0, 256),
    "seed": Bounds(0, 2**32 - 1),  # NumPy's generators take no more
}
"""By the setting, as a command writes it; of a list, those of each entry."""


@dataclass(frozen=True)
class Setting:
    """A leaf of a schema, and its value in a configuration."""

    key: str  # as a command writes it
    kind: type[Any]  # of its values, or of the entries of a list
    listed: bool
    value: Any

    @property
    def values(self) -> list[Any]:
        """Its value, or its entries; none of null."""
        if self.value is None:
            return []
        return list(self.value) if self.listed else [self.value]


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """The settings of a configuration whose values have one kind; those of free names, dictionaries, are left out."""
    for name, hint in get_type_hints(type(config)).items():
        key, value = f"{prefix}{name}", getattr(config, name)
        if is_dataclass(value):
            yield from settings(value, f"{key}.")
            continue
        if get_origin(hint) in (Union, types.UnionType):
            (hint,) = (kind for kind in get_args(hint) if kind is not types.NoneType)
        listed = get_origin(hint) is list
        kind = get_args(hint)[0] if listed else hint
        if isinstance(kind, type) and kind in (str, int, float, bool):
            yield Setting(key, kind, listed, value)


def check_lists(config: Any, prefix: str = "") -> None:
    """Refuse lists within lists and the like, which OmegaConf lets through.

    Raises:
        ConfigError: one sentence with the value and what is allowed.
    """
    for setting in settings(config, prefix):
        if not all(isinstance(value, setting.kind) for value in setting.values if setting.listed):
            kind = {str: "texts", int: "whole numbers"}.get(setting.kind, "numbers")
            raise ConfigError(f"{setting.key}={setting.value}: give a list of {kind}, as in [a,b].")


def check_bounds(config: Any, allowed: Mapping[str, Bounds] = BOUNDS, prefix: str = "") -> None:
    """Refuse numbers outside their bounds.

    Args:
        config: a dataclass of a schema.
        allowed: by the setting, as a command writes it.
        prefix: what a command writes before the names of the dataclass, as in "study.".

    Raises:
        ConfigError: one sentence with the value and what is allowed.
    """
    for setting in settings(config, prefix):
        bounds = allowed.get(setting.key)
        if bounds is not None and not all(bounds.hold(value) for value in setting.values):
            kind = "whole number" if setting.kind is int else "number"
            each = "whole numbers, each" if setting.listed else f"a {kind}"
            raise ConfigError(f"{setting.key}={setting.value}: give {each} {bounds}.")
