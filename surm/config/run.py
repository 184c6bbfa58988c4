"""A run as one object, made once from a checked configuration."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from surm.config import signature
from surm.config.rates import rates_of
from surm.config.schema import RunConfig
from surm.records.recorded import Recorded


@dataclass(frozen=True)
class Run(Recorded):
    """A model fine-tuned on a task with one method."""

    config: RunConfig  # checked; its learning rate is a number
    rate_source: str = ""  # where the rate comes from, if the command gave none

    @classmethod
    def of(cls, config: RunConfig) -> Self:
        """The run of a checked configuration, with the rate that is used where none is given."""
        if config.optim.lr:
            return cls(config)
        found = rates_of(config)
        return cls(replace(config, optim=replace(config.optim, lr=found.lr, head_lr=found.head_lr)), found.source)

    @property
    def rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        assert self.config.optim.lr is not None, "made by `Run.of`"
        return self.config.optim.lr

    @cached_property
    def asked(self) -> dict[str, Any]:
        return signature.asked(self.config)

    @property
    def output_dir(self) -> str:
        return self.config.output_dir
