import multiprocessing
import os
import pickle
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from surm.data import encode as encoding
from surm.data import image_cache, load_task
from surm.data.base import Split
from surm.data.encode import encode
from surm.data.image_cache import CachedImages, cached_images
from surm.models import load_backbone
from tests.data.hub_layout import picture, write_tiny

SIZE = 14  # pixels; the pictures have 20 x 16
COUNT = 30


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    return Split([picture(rng, "PNG") for _ in range(COUNT)], np.zeros(COUNT, dtype=np.int64), identity="content")


@pytest.fixture
def folder():
    return Path(os.environ["SURM_CACHE"])


def top_left(raw):
    """A resize that needs no arithmetic: the corner of the image."""
    pixels = np.array(Image.open(BytesIO(raw) if isinstance(raw, bytes) else raw))
    return torch.from_numpy(pixels[:SIZE, :SIZE]).permute(2, 0, 1)


def cache(split, size=SIZE, resize=top_left, **settings):
    return cached_images(split, size, settings, resize)


def files(folder, ending):
    return sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []


def test_the_file_holds_what_resize_gives_and_is_built_once(split, folder):
    found = cache(split)
    assert isinstance(found, CachedImages)
    assert len(found) == COUNT
    for index in (0, 7, COUNT - 1):
        assert found[index].dtype == torch.uint8
        assert found[index].equal(top_left(split.inputs[index]))
    again = cache(split, resize=None)  # would fail if it were called
    assert again[7].equal(found[7])
    assert len(files(folder, ".npy")) == 1


def test_everything_that_moves_a_pixel_has_a_file_of_its_own(split, folder, monkeypatch):
    cache(split)
    cache(split.subset(np.arange(20)))
    cache(split.subset(np.arange(10, 30)))
    cache(replace(split, identity="other content"))
    cache(split, crop=0.9)
    cache(split, interpolation="bilinear")
    cache(split, size=SIZE - 2, resize=lambda raw: top_left(raw)[:, :-2, :-2])
    monkeypatch.setattr(torch, "__version__", "another")
    cache(split)
    assert len(files(folder, ".npy")) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"identity": None},  # content unknown
        {"inputs": [np.zeros((20, 20, 3), dtype=np.uint8)] * COUNT},  # decoded already
        {"inputs": [picture(np.random.default_rng(0), "PNG", 10, 8)] * COUNT},  # reading would take longer
    ],
)
def test_no_cache_where_it_does_not_pay(change, split, folder):
    assert cache(replace(split, **change)) is None
    assert not files(folder, ".npy")


def test_no_cache_where_it_does_not_fit(split, folder, monkeypatch):
    usage = image_cache.shutil.disk_usage("/")._replace(free=COUNT * 3 * SIZE**2)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage)
    assert cache(split) is None
    monkeypatch.undo()
    monkeypatch.setenv("SURM_CACHE", str(folder))
    monkeypatch.setattr(image_cache, "LARGEST_FILE", COUNT * 3 * SIZE**2 - 1)
    assert cache(split) is None
    assert not files(folder, ".npy")


def test_no_cache_where_nothing_can_be_written(split, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "file"))
    assert cache(split) is None


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: b"", lambda content: b"no array"])
def test_a_damaged_file_is_named_and_built_again(split, folder, damage):
    cache(split)
    (file,) = folder.glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=f"{file.name} is a damaged cache"):
        cache(split)
    assert file.read_bytes() == whole


def test_an_image_that_cannot_be_read_leaves_nothing(split, folder):
    def fail(raw):
        raise ValueError("no image")

    with pytest.raises(ValueError, match="no image"):
        cache(split, resize=fail)
    assert not files(folder, ".npy") + files(folder, ".part")


def test_a_worker_process_maps_the_file_itself(split):
    found = cache(split)
    assert len(pickle.dumps(found)) < 1000
    assert pickle.loads(pickle.dumps(found))[3].equal(found[3])


# --- several processes ------------------------------------------------------------------------------------------------


def logged(log, seconds):
    """`top_left`, slowed down, that leaves one byte in a file for each image."""

    def resize(raw):
        with log.open("ab") as file:
            file.write(b".")
        time.sleep(seconds)
        return top_left(raw)

    return resize


def forked(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def check_pixels(split, log):
    found = cache(split, resize=logged(log, 0.005))
    assert all(found[index].equal(top_left(split.inputs[index])) for index in range(COUNT))


def test_two_processes_build_it_once(split, folder, tmp_path):
    log = tmp_path / "log"
    processes = [forked(check_pixels, split, log) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert log.stat().st_size == COUNT
    assert len(files(folder, ".npy")) == 1


def test_a_killed_process_leaves_no_half_file(split, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "CHUNK", 2)
    log = tmp_path / "log"
    process = forked(check_pixels, split, log)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size >= 6) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.join(60)
    assert process.exitcode == -9
    assert files(folder, ".part")
    assert not files(folder, ".npy")
    check_pixels(split, tmp_path / "second log")
    assert (tmp_path / "second log").stat().st_size == COUNT
    assert not files(folder, ".part")


# --- within `encode` --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stl10", "vtab/dtd", "image_folder"])
@pytest.mark.parametrize("crop", [1.0, 0.9])
def test_pixels_are_the_same_with_and_without(name, crop, folder, tmp_path, monkeypatch):
    task = load_task(name, path=write_tiny(name, tmp_path), evaluate_on="selection")
    vit = replace(load_backbone("tiny_vit", num_labels=2, image_size=14), crop=crop)
    without = encode(task.train, vit)
    assert not files(folder, ".npy")
    monkeypatch.setattr(encoding, "CACHE_BYTES", 1000)
    cached = encode(task.train, vit)
    assert isinstance(cached.split.inputs, CachedImages)
    assert len(files(folder, ".npy")) == 1
    for index in range(len(task.train)):
        assert cached[index]["x"].equal(without[index]["x"])
        assert cached[index]["labels"] == without[index]["labels"]
