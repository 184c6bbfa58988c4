"""GLUE: eight tasks on one or two English sentences (Wang et al. 2018), as nyu-mll/glue on the hub holds them.

The test splits' labels are not public, so the development split is the reported one, as in the paper (section 6,
Table 5); settings are chosen on a slice of the training split. Metrics are the paper's: Matthews' correlation for
CoLA, F1 for MRPC, Spearman's for STS-B, accuracy for the others; what GLUE itself states beside them comes second.
Licences differ from task to task, see the hub's data set card.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from surm.data.base import MAX_TOKENS, Corpus, Split, majority_baseline
from surm.data.hub import (
    DataFacts,
    HubSource,
    check_cells,
    check_columns,
    check_source,
    integer_labels,
    parquet_files,
    read_parquet,
    source_hash,
)
from surm.shared.errors import DataError

REPOSITORY = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True)
class GlueTask:
    """One task: its text columns, its classes (none: a value from 0 to 5) and its metrics, the primary one first."""

    texts: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    train_examples: int
    evaluation_examples: int
    size: str
    evaluation: str = "validation"
    mismatched: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", self.evaluation, *([self.mismatched] if self.mismatched else []))


_ACCURACY = ("accuracy",)
_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")

TASKS = {
    "cola": GlueTask(
        ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), 8551, 1043, "about 0.3 MB"
    ),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), _ACCURACY, 67_349, 872, "about 3 MB"),
    "mrpc": GlueTask(_SENTENCES, ("not_equivalent", "equivalent"), ("f1", "accuracy"), 3668, 408, "about 1 MB"),
    "stsb": GlueTask(_SENTENCES, (), ("spearman", "pearson"), 5749, 1500, "about 1 MB"),
    "qqp": GlueTask(
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        363_846,
        40_430,
        "about 75 MB",
    ),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        _ACCURACY,
        392_702,
        9815,
        "about 60 MB",
        evaluation="validation_matched",
        mismatched="validation_mismatched",
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT, _ACCURACY, 104_743, 5463, "about 20 MB"),
    "rte": GlueTask(_SENTENCES, _ENTAILMENT, _ACCURACY, 2490, 277, "about 1 MB"),
}

FACTS = {
    f"glue/{name}": DataFacts(
        max(1, len(task.label_names)),
        task.train_examples,
        task.evaluation_examples,
        MAX_TOKENS,
        f"the folder {name} of {REPOSITORY} on the Hugging Face hub, {task.size}",
        task.metrics[0],
    )
    for name, task in TASKS.items()
}


def read(name: str, path: str | None, columns: Mapping[str, str]) -> Corpus:
    """One task's training and development splits; rows without a label (-1) are left out."""
    task = _task(name)
    files = parquet_files(name, _source(name), task.splits, path)
    check_columns(name, files, (*task.texts, "label"))
    splits = {}
    for split, rows in read_parquet(files).items():
        for column in task.texts:
            check_cells(name, split, rows, column, "string", "large_string")
        check_cells(name, split, rows, "label", *(("int", "uint") if task.label_names else ("float", "double", "int")))
        labelled = rows.select(np.flatnonzero(np.asarray(rows.with_format("numpy")["label"][:]) != -1))
        if not len(labelled):
            raise DataError(
                f"The {split} files of {name} have no labels, -1 in every row, as GLUE's test files have: "
                "give labelled ones."
            )
        texts = [labelled[column][:] for column in task.texts]
        if task.label_names:
            labels = integer_labels(name, split, labelled, "label", len(task.label_names))
        else:
            labels = np.asarray(labelled.with_format("numpy")["label"][:], dtype=np.float64)
        inputs = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
        splits[split] = Split(inputs, labels)
    return Corpus(
        "text",
        task.label_names,
        splits["train"],
        splits[task.evaluation],
        metrics=task.metrics,
        baselines=partial(majority_baseline, metric=task.metrics[0])
        if task.label_names
        else lambda train, evaluation: {},
        also={"mismatched": splits[task.mismatched]} if task.mismatched else {},
        source_hash=source_hash(files),
    )


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, what `read` could not read."""
    check_source(name, _source(name), _task(name).splits, path, (*_task(name).texts, "label"))


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """The commit of the hub's repository."""
    return REVISION


def _task(name: str) -> GlueTask:
    return TASKS[name.removeprefix("glue/")]


def _source(name: str) -> HubSource:
    return HubSource(REPOSITORY, REVISION, name.removeprefix("glue/"))
