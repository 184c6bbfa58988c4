"""The order of the training examples."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW = 32  # batches among which examples are sorted by their length


class EpochBatches(Sampler[list[int]]):
    """Batches of one epoch; their order depends on seed and epoch alone, and `start` skips what is done.

    Several processes share each batch, so that their number does not change what a step learns from: process i of P
    takes the examples i, i + P, i + 2 P, ... of it.

    Where `lengths` are given, a batch holds examples of nearly one length, so that little of it is padding: those of
    32 batches in a random order are sorted, and the batches are taken in a random order again.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed, self.lengths = length, batch_size, seed, lengths
        self.process, self.processes = process, processes
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return math.ceil(self.length / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        if self.lengths is not None:
            order = self._by_length(order, self.lengths, generator)
        for first in range(self.start * self.batch_size, self.length, self.batch_size):
            batch = order[first : first + self.batch_size]
            yield (
                batch[self.process :: self.processes] or batch[:1]
            )  # every process must answer; this one counts nothing

    def _by_length(self, order: list[int], lengths: Sequence[int], generator: torch.Generator) -> list[int]:
        """The order with examples of one length side by side; a batch that is not full stays the last."""
        size = self.batch_size
        whole = self.length - self.length % size
        batches: list[list[int]] = []
        for first in range(0, whole, WINDOW * size):
            window = sorted(order[first : min(first + WINDOW * size, whole)], key=lengths.__getitem__)
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        chosen = torch.randperm(len(batches), generator=generator).tolist()
        return [index for number in chosen for index in batches[number]] + order[whole:]

    def weight(self, number: int) -> float:
        """Factor of this process's mean loss in batch `number` of the epoch: the mean over processes is the batch's."""
        size = min(self.batch_size, self.length - number * self.batch_size)
        return len(range(self.process, size, self.processes)) * self.processes / size
