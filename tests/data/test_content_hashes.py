"""Data are identified by their content, which is hashed once until a file changes."""

import json
import os
from functools import partial

import pytest

from surm.data import check_data, data_hash, data_revision, hashing
from tests.data.faults import bitmaps

BY_CONTENT = {"image_folder": None, "imagenet1k": None, "vtab/dtd": None, "table": {"image": "file"}}


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", BY_CONTENT)
def test_equal_names_and_sizes_are_no_equal_data(name, tmp_path):
    hashes = [
        data_hash(name, path=bitmaps(tmp_path / str(number), seed), columns=BY_CONTENT[name])
        for number, seed in enumerate((0, 1, 0))
    ]
    assert hashes[0] == hashes[2] != hashes[1]
    if name in ("image_folder", "table"):
        revisions = [data_revision(name, path=tmp_path / str(n), columns=BY_CONTENT[name]) for n in range(3)]
        assert revisions == [found[:12] for found in hashes]


@pytest.fixture
def read_bytes(monkeypatch):
    """The files that were read to be hashed."""
    read = []
    blocks = hashing._blocks
    monkeypatch.setattr(hashing, "_blocks", lambda file: (read.append(file), blocks(file))[1])
    return read


@pytest.fixture
def settled(monkeypatch):
    """Every file counts as written long ago."""
    monkeypatch.setattr(hashing, "SETTLED", -60.0)


@pytest.mark.sample(6)
@pytest.mark.parametrize("function", ["contents_hash", "files_hash"])
def test_a_file_is_hashed_once_until_it_changes(function, tmp_path, read_bytes, settled):
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(b"content")
    compute = partial(getattr(hashing, function), *([tmp_path] if function == "contents_hash" else []), files)
    first = compute()
    assert (compute(), len(read_bytes)) == (first, 2)
    stamp = files[1].stat()
    files[1].write_bytes(b"CONTENT")  # of the same size, with its time put back
    os.utime(files[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert compute() != first
    assert set(read_bytes[2:]) == ({files[1]} if function == "contents_hash" else set(files))


def test_a_file_that_was_just_written_is_read_again(tmp_path, read_bytes):
    (tmp_path / "a").write_bytes(b"content")
    for _ in range(2):
        hashing.contents_hash(tmp_path, [tmp_path / "a"])
    assert len(read_bytes) == 2


@pytest.mark.sample(6)
@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000, b'{"a": ["x"]}', b"null"])
def test_a_damaged_cache_of_hashes_is_computed_again(damage, tmp_path, settled):
    (tmp_path / "a").write_bytes(b"content")
    expected = hashing.contents_hash(tmp_path, [tmp_path / "a"])
    (file,) = (hashing.cache_folder() / "hashes").glob("*.json")
    file.write_bytes(damage)
    assert hashing.contents_hash(tmp_path, [tmp_path / "a"]) == expected
    assert list(json.loads(file.read_text())) == ["a"]


def test_hashes_need_no_cache(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"content")
    expected = hashing.contents_hash(tmp_path, [tmp_path / "a"])
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "a"))  # a file where a folder should be
    assert hashing.contents_hash(tmp_path, [tmp_path / "a"]) == expected
    bitmaps(tmp_path / "data", 0)
    check_data("image_folder", path=tmp_path / "data")
