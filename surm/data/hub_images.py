"""Image classification from parquet files of the hub: the five data sets of the paper's Table 1, and a small CIFAR-10.

The reported split is `test` of each. Of DTD and SUN397 it is the first of the authors' official partitions (DTD: its
train and val are the training split). Images stay encoded until a model asks for them.

`cifar10_1000` trains on 1,000 images of CIFAR-10, a hundred of each class, as VTAB-1k does: the same ones for every
seed, in the order of sha256 over their content.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from surm.data.base import Corpus, Split, digest, share
from surm.data.hub import (
    DataFacts,
    HubSource,
    ImageBytes,
    check_columns,
    check_source,
    class_names,
    integer_labels,
    parquet_files,
    read_parquet,
    source_hash,
)

SPLITS = ("train", "test")


@dataclass(frozen=True)
class HubImages:
    """One data set: where it is, its image and label columns, and its size."""

    source: HubSource
    image: str
    label: str
    num_labels: int
    train_examples: int
    test_examples: int
    size: str
    whole: str = ""  # the data set whose files it reads a part of


DATA = {
    "cifar10": HubImages(
        HubSource("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2", "plain_text"),
        *("img", "label", 10, 50_000, 10_000, "about 145 MB"),
    ),
    "cifar100": HubImages(
        HubSource("uoft-cs/cifar100", "aadb3af77e9048adbea6b47c21a81e47dd092ae5", "cifar100"),
        *("img", "fine_label", 100, 50_000, 10_000, "about 145 MB"),
    ),
    "sun397": HubImages(
        HubSource("tanganke/sun397", "9c4afd6174afa3974f209a0ef099dbbe244dfd27", "data"),
        *("image", "label", 397, 19_850, 19_850, "about 15 GB"),
    ),
    "dtd": HubImages(
        HubSource("tanganke/dtd", "d2afa97d9f335b1a6b3b09c637aef667f98f966e", "data"),
        *("image", "label", 47, 3760, 1880, "about 630 MB"),
    ),
    "stl10": HubImages(
        HubSource("tanganke/stl10", "49ae7f94508f7feae62baf836db284306eab0b0f", "data"),
        *("image", "label", 10, 5000, 8000, "about 230 MB"),
    ),
}
DATA["cifar10_1000"] = replace(DATA["cifar10"], train_examples=1000, whole="cifar10")

FACTS = {
    name: DataFacts(
        data.num_labels,
        data.train_examples,
        data.test_examples,
        None,
        f"the folder {data.source.folder} of {data.source.repository} on the Hugging Face hub, {data.size}",
    )
    for name, data in DATA.items()
}


def read(name: str, path: str | None, columns: Mapping[str, str]) -> Corpus:
    """The training and test splits, each input the bytes of an image file."""
    data = DATA[name]
    files = parquet_files(data.whole or name, data.source, SPLITS, path)
    check_columns(name, files, (data.image, data.label))
    rows = read_parquet(files)
    train, test = (
        Split(ImageBytes(of_split, data.image), integer_labels(name, split, of_split, data.label, data.num_labels))
        for split, of_split in rows.items()
    )
    names = class_names(rows["train"], data.label, data.num_labels)
    if data.whole:  # its content hash is over the examples of the part, not over the files
        part = share(train, min(1.0, data.train_examples / len(train)), 0, regression=False, key=digest)
        return Corpus("image", names, part, test)
    return Corpus("image", names, train, test, source_hash=source_hash(files))


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, what `read` could not read."""
    data = DATA[name]
    check_source(data.whole or name, data.source, SPLITS, path, (data.image, data.label))


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """The commit of the hub's repository."""
    return DATA[name].source.revision
