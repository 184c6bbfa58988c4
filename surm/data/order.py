"""The order of the training examples."""

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[int]]):
    """Batches of one epoch; their order depends on seed and epoch alone, and `start` skips what is done.

    Several processes share each batch, so that their number does not change what a step learns from: process i of P
    takes the examples i, i + P, i + 2 P, ... of it.
    """

    def __init__(self, length: int, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.process, self.processes = process, processes
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return math.ceil(self.length / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        for first in range(self.start * self.batch_size, self.length, self.batch_size):
            batch = order[first : first + self.batch_size]
            yield (
                batch[self.process :: self.processes] or batch[:1]
            )  # every process must answer; this one counts nothing

    def weight(self, number: int) -> float:
        """Factor of this process's mean loss in batch `number` of the epoch: the mean over processes is the batch's."""
        size = min(self.batch_size, self.length - number * self.batch_size)
        return len(range(self.process, size, self.processes)) * self.processes / size
