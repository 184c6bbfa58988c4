"""Tiny data in the layout of each data set's own files, made up here: for tests without a network."""

import json
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from surm.data import phantoms

# The columns and splits as the data set cards on the hub document them, written again by hand.
GLUE = {
    "cola": (("sentence",), 2),
    "sst2": (("sentence",), 2),
    "mrpc": (("sentence1", "sentence2"), 2),
    "stsb": (("sentence1", "sentence2"), 0),
    "qqp": (("question1", "question2"), 2),
    "mnli": (("premise", "hypothesis"), 3),
    "qnli": (("question", "sentence"), 2),
    "rte": (("sentence1", "sentence2"), 2),
}
HUB_IMAGES = {
    "cifar10": ("img", "label", 10),
    "cifar10_1000": ("img", "label", 10),
    "cifar100": ("img", "fine_label", 100),
    "sun397": ("image", "label", 397),
    "dtd": ("image", "label", 47),
    "stl10": ("image", "label", 10),
}
VTAB = {
    "cifar100": 100,
    "caltech101": 102,
    "dtd": 47,
    "flowers": 102,
    "pets": 37,
    "svhn": 10,
    "sun397": 397,
    "camelyon": 2,
    "eurosat": 10,
    "resisc45": 45,
    "retinopathy": 5,
}
WORDS = ("the", "a", "good", "bad", "cat", "dog", "reads", "writes", "book", "slowly", "well", "often", "never")


def write_tiny(name: str, folder: Path, rows: int = 24) -> Path:
    """Made-up data of `name` below `folder`, `rows` to train on and half of them to evaluate; returns dataset.path."""
    rng = np.random.default_rng(list(name.encode()))
    folder = Path(folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    family, _, task = name.partition("/")
    if family == "glue":
        write_glue(task, folder, rows, rng)
    elif name in HUB_IMAGES:
        image, label, classes = HUB_IMAGES[name]
        for split, count in (("train", rows), ("test", rows // 2)):
            labels = np.arange(count) % min(classes, 4)
            write_images(folder / f"{split}-00000-of-00001.parquet", image, label, labels, classes, rng)
    elif family == "vtab":
        write_vtab(folder, VTAB[task], rows, rng)
    elif name in ("imagenet1k", "inat2021", "image_folder"):
        for split, count in (("train", rows), ("val", rows // 2)):
            for index in range(count):
                file = folder / split / f"n{index % 3:04}" / f"{index:03}.jpeg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(rng, "JPEG"))
    elif name == "synapse":
        write_synapse(folder)
    elif name == "table":
        for split, count in (("train", rows), ("test", rows // 2)):
            lines = [f"{sentence(rng)},{('sad', 'glad')[index % 2]}" for index in range(count)]
            (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    else:
        raise ValueError(f"{name} is not read from a path.")
    return folder


def write_synapse(folder: Path) -> None:
    """The phantoms in the layout of TransUNet's preparation: a file for a training slice, one for a test volume."""
    for number in range(phantoms.TRAIN + phantoms.TEST):
        levels, classes = phantoms.volume(number)
        image, label = (levels / 255).astype(np.float32), classes.astype(np.float32)
        if number < phantoms.TRAIN:
            (folder / "train_npz").mkdir(exist_ok=True)
            for index in range(len(image)):
                file = folder / "train_npz" / f"case{number:04}_slice{index:03}.npz"
                np.savez(file, image=image[index], label=label[index])
        else:
            (folder / "test_vol_h5").mkdir(exist_ok=True)
            with h5py.File(folder / "test_vol_h5" / f"case{number:04}.npy.h5", "w") as file:
                file["image"], file["label"] = image, label


def write_glue(task: str, folder: Path, rows: int, rng: np.random.Generator) -> None:
    texts, classes = GLUE[task]
    suffixes = ("_matched", "_mismatched") if task == "mnli" else ("",)
    sizes = {"train": rows} | {f"validation{suffix}": rows // 2 for suffix in suffixes}
    for split, count in sizes.items():
        table = {column: [sentence(rng) for _ in range(count)] for column in texts}
        labels = np.arange(count) % classes if classes else np.round(rng.uniform(0, 5, count), 1).astype(np.float32)
        write_parquet(folder / f"{split}-00000-of-00001.parquet", table | {"label": labels, "idx": np.arange(count)})


def write_vtab(folder: Path, classes: int, rows: int, rng: np.random.Generator) -> None:
    for file, count in (("train800.txt", rows - rows // 4), ("val200.txt", rows // 4), ("test.txt", rows // 2)):
        lines = []
        for index in range(count):
            image = Path("images") / file.removesuffix(".txt") / f"{index:06}.jpg"
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            (folder / image).write_bytes(picture(rng, "JPEG"))
            lines.append(f"{image.as_posix()} {index % min(classes, 4)}\n")
        (folder / file).write_text("".join(lines))


def write_images(file: Path, image: str, label: str, labels, classes: int, rng: np.random.Generator) -> None:
    """A parquet file as `datasets` pushes it: encoded images, and the features in the schema's metadata."""
    features = {image: {"_type": "Image"}, label: {"names": [f"c{i}" for i in range(classes)], "_type": "ClassLabel"}}
    pictures = [{"bytes": picture(rng, "PNG"), "path": f"{index}.png"} for index in range(len(labels))]
    write_parquet(file, {image: pictures, label: labels}, features)


def write_parquet(file: Path, columns: dict, features: dict | None = None) -> None:
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)


def picture(rng: np.random.Generator, kind: str, width: int = 20, height: int = 16) -> bytes:
    """An encoded random image."""
    stream = BytesIO()
    Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(3, 9)))
