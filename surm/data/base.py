"""What a task is, and how its examples are identified, split and compared with simple baselines.

Splits follow the order of sha256 over each example's content and a fixed salt: no random generator is involved, so
they are the same on every platform, with every library version and for every seed of a run.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Raw inputs, each a str, a uint8 array (height, width, 3) or the path of an image file, and their labels."""

    inputs: Sequence[Any]
    labels: Integers

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Integers) -> "Split":
        return Split([self.inputs[i] for i in indices], self.labels[indices])


@dataclass(frozen=True)
class Task:
    """What one run trains on and is evaluated on; `baselines` are accuracies on `evaluation` without any model."""

    name: str
    modality: str
    num_labels: int
    label_names: tuple[str, ...]
    train: Split
    evaluation: Split
    metrics: tuple[str, ...]
    primary_metric: str
    content_hash: str
    baselines: dict[str, float]


def majority_baseline(train: Split, evaluation: Split) -> dict[str, float]:
    """Accuracy of always answering the training split's most frequent label."""
    return {"majority": float(np.mean(evaluation.labels == most_frequent(train.labels)))}


@dataclass(frozen=True)
class Corpus:
    """A data set before a run chooses its part: what a file of this package returns.

    `selection` holds the indices of the fifth of `train` on which settings are chosen.
    """

    modality: str
    label_names: tuple[str, ...]
    train: Split
    test: Split
    selection: Integers
    metrics: tuple[str, ...] = ("accuracy",)
    baselines: Callable[[Split, Split], dict[str, float]] = majority_baseline

    @cached_property
    def content_hash(self) -> str:
        """sha256 over every raw input and label of both splits, in order."""
        total = hashlib.sha256()
        for split in (self.train, self.test):
            total.update(f"{len(split)} examples\n".encode())
            for raw, label in zip(split.inputs, split.labels.tolist(), strict=True):
                total.update(f"{digest(raw)} {label}\n".encode())
        return total.hexdigest()


def digest(raw: Any) -> str:
    """Hexadecimal sha256 of one raw input: a file's bytes, a string's UTF-8, an array's shape and bytes."""
    if isinstance(raw, Path):
        content = raw.read_bytes()
    elif isinstance(raw, str):
        content = raw.encode()
    else:
        content = repr(raw.shape).encode() + raw.tobytes()
    return hashlib.sha256(content).hexdigest()


def holdout(keys: Sequence[Hashable], labels: Integers, size: int, salt: str) -> Integers:
    """Sorted indices of at least `size` examples: whole groups of one key, in which every label has its share.

    A group stands with those of its most frequent label, in the order of sha256 over salt and key. Its place is the
    share of those examples that come before its own middle; the groups with the lowest places are held out. With one
    example a group this is the usual stratified split, exact to one example a label.
    """
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    strata: defaultdict[int, list[Hashable]] = defaultdict(list)
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{salt}:{key}".encode()).digest()):
        strata[most_frequent(labels[groups[key]])].append(key)

    places: list[tuple[float, Hashable]] = []
    for stratum in strata.values():
        sizes = np.array([len(groups[key]) for key in stratum])
        middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
        places += zip(middles.tolist(), stratum, strict=True)

    held_out: list[int] = []
    for _, key in sorted(places):
        if len(held_out) >= size:
            break
        held_out += groups[key]
    return np.sort(np.array(held_out, dtype=np.int64))


def most_frequent(labels: Integers) -> int:
    """The most frequent label, the smallest of several."""
    values, counts = np.unique(labels, return_counts=True)
    return int(values[np.argmax(counts)])


def complement(indices: Integers, total: int) -> Integers:
    """The indices below `total` that are not in `indices`."""
    return np.setdiff1d(np.arange(total, dtype=np.int64), indices)
