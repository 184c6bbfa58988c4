"""Losses of training steps, read from the device together, so that it need not wait for the host in each step."""

import math

import torch
from torch import Tensor

from surm.shared.errors import RunError


class Losses:
    """Losses on the device until they are read: on a CPU at once, elsewhere when the loop asks for them.

    Args:
        device: where they are computed.
        rate: the run's learning rate, for the sentence of an error.
    """

    def __init__(self, device: torch.device, rate: float) -> None:
        self.rate = rate
        self.last = math.nan  # of those that were read
        self._at_once = device.type == "cpu"
        self._waiting: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss: Tensor) -> None:
        """Take the loss, of shape (), of a step (from 1).

        Raises:
            RunError: on a CPU, it is not finite.
        """
        self._waiting.append((step, loss))
        if self._at_once:
            self.read()

    def read(self) -> float:
        """The last loss; waits for the device.

        Raises:
            RunError: one of those that were not read before is not finite.
        """
        waiting, self._waiting = self._waiting, []
        if waiting:
            values = torch.stack([loss for _, loss in waiting]).tolist()
            for (step, _), value in zip(waiting, values, strict=True):
                if not math.isfinite(value):
                    raise RunError(f"the loss is {value} at step {step}: lower optim.lr={self.rate}.")
            self.last = values[-1]
        return self.last
