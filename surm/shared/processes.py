"""Several processes of one run, as `accelerate launch` starts them: the main one decides and writes."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Answer = TypeVar("Answer")


def is_main() -> bool:
    """Whether this is the process that speaks and writes; known before the processes have found each other."""
    return os.environ.get("RANK", "0") == "0"


def several() -> bool:
    """Whether this process is one of several that share a run."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def lone_launch() -> bool:
    """Whether `accelerate launch` was asked for several processes and started one, as it does without GPUs."""
    return not several() and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ


def main_decides(decide: Callable[[], Answer]) -> Answer:
    """What the main process finds, or the error that it raises, in every process."""
    if not several():
        return decide()
    said: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            said = [(decide(), None)]
        except Exception as failure:
            said = [(None, failure)]
    broadcast_object_list(said)
    answer, refusal = said[0]
    if refusal is not None:
        raise refusal
    found: Answer = answer
    return found
