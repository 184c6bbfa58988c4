"""What tests of damaged data share: small data to damage, and how each way into the data refuses them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surm import data
from surm.data import check_data, data_hash, load_task
from surm.shared.errors import DataError
from tests.data.hub_layout import picture

TEXTS = ["one good book", "a bad cat", "it reads well", "never, ever", "two dogs", "slowly"]
COLUMNS = {"text": "text", "label": "label"}


def listing(folder):
    return {file: (file.lstat().st_mtime_ns, file.lstat().st_size) for file in Path(folder).rglob("*")}


def refused(name, path, columns=None):
    """The sentence with which each way into the data refuses them; the folder stays as it is."""
    before, sentences = listing(path), set()
    options = {"path": str(path), **({"columns": columns} if columns else {})}
    for read in (check_data, data_hash, load_task):
        data._read.cache_clear()
        with pytest.raises(DataError) as error:
            read(name, **options)
        sentences.add(str(error.value))
    assert listing(path) == before
    for sentence in sentences:
        assert "\n" not in sentence
        assert len(sentence) < 600
        assert sentence.rstrip().endswith(".")
    return " | ".join(sorted(sentences))


def folder(root):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for index in range(3):
                (root / split / label / f"{index}.png").write_bytes(picture(rng, "PNG"))
    return root


def put(name, content):
    def spoil(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return spoil


def saved(image, kind, **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PNG = picture(np.random.default_rng(1), "PNG")
HUGE = saved(Image.new("1", (20_000, 9_750)), "PNG")  # 195 megapixels in a few kilobytes


def bitmaps(root, seed):
    """Pictures of equal names and sizes whatever the seed: nothing but their content differs."""
    rng = np.random.default_rng(seed)
    for split in ("train", "test", "images/train800", "images/val200", "images/test"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "0.bmp").write_bytes(picture(rng, "BMP"))
    for name in ("train800", "val200", "test"):
        (root / f"{name}.txt").write_text(f"images/{name}/a/0.bmp 0\nimages/{name}/b/0.bmp 1\n")
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text(f"file,label\n{split}/a/0.bmp,0\n{split}/b/0.bmp,1\n")
    return root
