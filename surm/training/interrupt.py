"""Stopping between two steps, so that what is written is a state of the run."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether a signal asked to stop."""

    requested = False


@contextmanager
def stop_at_signal(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the step finish and set `stop.requested`; a second one stops at once."""

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
