"""What a task is, and how its examples are identified, split and compared with simple baselines.

Splits follow the order of sha256 over each example's content and a fixed salt: no random generator is involved, so
they are the same on every platform, with every library version and for every seed of a run.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from surm.data.metrics import compute_metrics
from surm.models.backbone import Backbone

Integers = NDArray[np.int64]
Labels = NDArray[Any]  # int64 classes, or float64 values of a regression
Example = dict[str, Tensor]  # without a batch dimension, or a batch with it

MAX_TOKENS = 128  # of a text or a pair, special tokens included (appendix B.1)
LARGEST_SELECTION = 5000  # examples


@dataclass(frozen=True)
class Split:
    """Raw inputs and their labels, int64 classes or float64 values.

    An input is a str, a pair of str, a uint8 array (height, width, 3), the path of an image file, or the bytes of one.
    `identity` names the content: two splits with one identity hold the same examples in the same order.
    """

    inputs: Sequence[Any]
    labels: Labels
    identity: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Integers) -> "Split":
        # A list's inputs are in memory; others, such as the rows of a file, are read when they are asked for.
        chosen = [self.inputs[i] for i in indices] if isinstance(self.inputs, list) else Chosen(self.inputs, indices)
        identity = self.identity and hashlib.sha256(self.identity.encode() + indices.tobytes()).hexdigest()
        return Split(chosen, self.labels[indices], identity)


class Chosen(Sequence[Any]):
    """`inputs[indices]`, without a copy."""

    def __init__(self, inputs: Sequence[Any], indices: Integers) -> None:
        self.inputs, self.indices = inputs, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Chosen(self.inputs, self.indices[index])
        return self.inputs[int(self.indices[index])]


# --- what a task asks of a model --------------------------------------------------------------------------------------


class Examples(Protocol):
    """A split as a model's inputs, as `Objective.examples` makes it; `surm.data.encode.EncodedDataset` is one."""

    @property
    def unfinished(self) -> Dataset[Example]:
        """The examples as they are kept and moved to a device."""

    @property
    def finish(self) -> Callable[[Example], Example]:
        """Makes the rest of a batch where it lies, such as floats of grey levels."""

    @property
    def lengths(self) -> Sequence[int] | None:
        """The size of each example where it differs, by which batches are put together; None: all are alike."""

    def __len__(self) -> int: ...

    def collate(self, examples: Sequence[Example]) -> Example:
        """A batch of examples, whatever the model takes and `labels`, each with a first dimension B."""

    def fill(self) -> None:
        """Prepare all of them before the first is needed, where that is faster."""


@dataclass
class Answers:
    """Of every example label, prediction and loss; the metrics over all of them with their mean loss, as "loss".

    Labels and predictions are what the metrics are computed from, so that they can be again, with an interval: classes
    or values; of generated text the number of tokens of the answer, and how many of them are right.
    """

    labels: list[float] = field(default_factory=list)
    predictions: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Objective(ABC):
    """What a task asks of a model: which inputs it gets, what it answers, the loss and the metrics.

    The training loop calls these four methods and knows no kind of task; a new kind is a subclass of this.
    `surm/data/labels.py` has classes and values, `surm/data/language.py` the next token, `surm/data/segmentation.py` a
    class of each pixel.

    The loop calls, in this order:

    1. `examples`, once for each split, when the model is loaded and before a method is applied to it;
    2. `loss`, in training mode, with every batch; gradients flow from it alone;
    3. `answer`, in evaluation mode and without gradients, with every batch of a split, then `score` once with all.

    Batches may be divided among processes, so nothing here may be a mean over a batch but the loss: `answer` gives
    numbers of single examples, and `score` sees those of the whole split, in its order.

    The model is called as `module(**inputs)`, whatever is around it (PEFT, data parallel, compiled), once in `loss`
    and once in `answer`; both run under the run's autocast.
    """

    predicts: ClassVar[str]
    """What the model must give, by which `surm.models` loads it: "labels" (a new head), "tokens", "masks" (its own)."""

    metrics: tuple[str, ...]
    """What `score` computes beside the loss; the first is the primary one, from -1 to 1, the larger the better.

    It is known to `surm.report.statistics.METRICS`, which computes it again from labels and predictions.
    """

    @abstractmethod
    def examples(self, split: "Split", backbone: Backbone) -> Examples:
        """The split as the backbone's inputs.

        Raises:
            DataError: one sentence, for data that this model cannot be trained on.
        """

    @abstractmethod
    def loss(self, module: nn.Module, batch: Example) -> Tensor:
        """The mean over the batch's examples, each of which counts the same: of shape (), with a gradient."""

    @abstractmethod
    def answer(self, module: nn.Module, batch: Example) -> tuple[Tensor, ...]:
        """What the model gives for each example and what is right, whatever `score` needs: tensors (B, ..)."""

    @abstractmethod
    def score(self, answers: tuple[Tensor, ...]) -> Answers:
        """The metrics of a whole split from what `answer` gave, (N, ..) on the processor."""


@dataclass(frozen=True)
class Task:
    """What one run trains on and is evaluated on.

    `objective` says what is predicted, trained and measured. `baselines` are scores on `evaluation` without any model,
    in the primary metric; a regression (one label, a float64 value) has none. `also` are further splits that the
    reported one is read beside, such as MNLI's mismatched genres. `memorised`: the reported examples are those that are
    trained on, so that a run with a number of steps sees them as often as these take.
    """

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
    objective: Objective
    regression: bool = False
    also: dict[str, Split] = field(default_factory=dict)
    memorised: bool = False


def majority_baseline(train: Split, evaluation: Split, metric: str = "accuracy") -> dict[str, float]:
    """The primary metric of always answering the training split's most frequent label."""
    answers = np.full(len(evaluation), most_frequent(train.labels))
    return {"majority": compute_metrics([metric], evaluation.labels, answers)[metric]}


def digest(raw: Any) -> str:
    """Hexadecimal sha256 of one raw input: a file's bytes, a string's UTF-8, an array's shape and bytes."""
    if isinstance(raw, Path):
        content = raw.read_bytes()
    elif isinstance(raw, bytes):
        content = raw
    elif isinstance(raw, str):
        content = raw.encode()
    elif isinstance(raw, tuple):
        content = json.dumps(raw).encode()  # tells ("a b", "c") from ("a", "b c")
    else:
        content = repr(raw.shape).encode() + raw.tobytes()
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """A data set before a run chooses its part: what a file of this package returns.

    `selection` holds the indices of the part of `train` on which settings are chosen; None is a stratified fifth, of at
    most 5,000 examples. `key` names an input by what it holds, not by its place, for splits that survive a new order.
    `source_hash` is the content hash where that of the files is at hand; None hashes every example.
    `label_names` is empty for a regression, and where an `objective` says what is predicted instead of labels.
    `tuning` makes the corpus on which settings are chosen where no slice of the training split can say anything of the
    rest, as of a task of memorising.
    """

    modality: str
    label_names: tuple[str, ...]
    train: Split
    test: Split
    selection: Integers | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    baselines: Callable[[Split, Split], dict[str, float]] = majority_baseline
    also: dict[str, Split] = field(default_factory=dict)
    key: Callable[[Any], str] = digest
    source_hash: str | None = None
    objective: Objective | None = None
    tuning: "Callable[[], Corpus] | None" = None

    @property
    def regression(self) -> bool:
        return not self.label_names and self.objective is None

    @cached_property
    def held_out(self) -> Integers:
        """Sorted indices of the selection slice."""
        if self.selection is not None:
            return self.selection
        keys = [self.key(raw) for raw in self.train.inputs]
        size = max(1, min(len(self.train) // 5, LARGEST_SELECTION))
        return holdout(keys, self.train.labels, size, "selection")

    @cached_property
    def content_hash(self) -> str:
        """sha256 over every raw input and label of both splits, in order, or over the files that hold them."""
        if self.source_hash is not None:
            return self.source_hash
        total = hashlib.sha256()
        for split in (self.train, self.test):
            total.update(f"{len(split)} examples\n".encode())
            for raw, label in zip(split.inputs, split.labels.tolist(), strict=True):
                total.update(f"{digest(raw)} {label}\n".encode())
        return total.hexdigest()


def share(split: Split, fraction: float, seed: int, *, regression: bool, key: Callable[[Any], str]) -> Split:
    """A seeded part of a split, `fraction` of its examples, in which every label has its share.

    Within a label, examples follow the order of sha256 over the seed and their content; the part is a prefix of one
    order of all examples, so the 2 % of a seed are inside its 10 %. Each label's first example comes first: every
    label is there wherever there are as many examples as labels.
    """
    size = max(1, round(fraction * len(split)))
    strata = np.zeros(len(split), dtype=np.int64) if regression else split.labels
    draws = [hashlib.sha256(f"fraction:{seed}:{key(raw)}".encode()).digest() for raw in split.inputs]
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(split)), key=lambda index: (draws[index], index)):
        members[int(strata[index])].append(index)
    places = [
        (rank > 0, (rank + 0.5) / len(stratum), label, index)
        for label, stratum in members.items()
        for rank, index in enumerate(stratum)
    ]
    return split.subset(np.array(sorted(index for *_, index in sorted(places)[:size]), dtype=np.int64))


def holdout(keys: Sequence[Hashable], labels: Labels, size: int, salt: str) -> Integers:
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


def most_frequent(labels: Labels) -> int:
    """The most frequent label, the smallest of several; a value of a regression counts as its integer part."""
    if len(labels) == 1:  # `holdout` asks this for each of a million images
        return int(labels[0])
    values, counts = np.unique(labels, return_counts=True)
    return int(values[np.argmax(counts)])


def complement(indices: Integers, total: int) -> Integers:
    """The indices below `total` that are not in `indices`."""
    return np.setdiff1d(np.arange(total, dtype=np.int64), indices)
