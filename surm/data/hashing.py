"""Hashes of the content of files, each computed once.

What was hashed is kept below the cache folder by path, size and the times of the last change in nanoseconds. A file
that changed within the last two seconds is hashed again the next time, since it could change once more within the
resolution of a file system's clock.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from surm.shared.errors import DataError, DataNotFoundError
from surm.shared.paths import cache_folder

SETTLED = 2.0  # seconds since the last change; the coarsest clock of a file system in use has this resolution


def files_hash(files: Iterable[Path]) -> str:
    """Hexadecimal sha256 over the sizes and bytes of files, in the order given."""
    files = list(files)
    stamps = [_stamp(file) for file in files]
    with _remembered([str(file.absolute()) for file in files]) as known:
        stamp = " ".join(stamp for stamp, _ in stamps)
        if known.get("all", ("", ""))[0] == stamp:
            return known["all"][1]
        total = hashlib.sha256()
        for file in files:
            total.update(f"{file.stat().st_size}\n".encode())
            for block in _blocks(file):
                total.update(block)
        if all(settled for _, settled in stamps):
            known["all"] = (stamp, total.hexdigest())
        return total.hexdigest()


def contents_hash(root: Path, files: Iterable[Path]) -> str:
    """Hexadecimal sha256 over the sorted relative paths of files below `root` and the sha256 of each one's content."""
    names = {os.path.relpath(file, root).replace(os.sep, "/"): file for file in files}
    with _remembered([str(root.absolute())]) as known, ThreadPoolExecutor(os.cpu_count()) as threads:
        stamps = dict(zip(names, threads.map(_stamp, names.values()), strict=True))
        stale = [name for name, (stamp, _) in stamps.items() if known.get(name, ("", ""))[0] != stamp]
        digests = dict(zip(stale, threads.map(lambda name: _file_hash(names[name]), stale), strict=True))
        digests |= {name: known[name][1] for name in names.keys() - digests.keys()}
        known.update({name: (stamps[name][0], digests[name]) for name in stale if stamps[name][1]})
    total = hashlib.sha256()
    for name in sorted(names):
        total.update(os.fsencode(name) + f" {digests[name]}\n".encode())
    return total.hexdigest()


def _stamp(file: Path) -> tuple[str, bool]:
    """What changes whenever a file does, and whether its last change is long enough ago to rely on that."""
    try:
        about = file.stat()
    except FileNotFoundError:
        raise DataNotFoundError(f"{file} is listed but not there: bring it back, or take it off the list.") from None
    settled = max(about.st_mtime, about.st_ctime) < time.time() - SETTLED
    return f"{about.st_size}:{about.st_mtime_ns}:{about.st_ctime_ns}:{about.st_ino}", settled


def _file_hash(file: Path) -> str:
    total = hashlib.sha256()
    for block in _blocks(file):
        total.update(block)
    return total.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while block := stream.read(2**22):
                yield block
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): see that the file is whole and readable.") from None


@contextmanager
def _remembered(of: list[str]) -> Iterator[dict[str, tuple[str, str]]]:
    """The (stamp, hash) of each name as it was left the last time; changes are kept if the cache can be written.

    Locked, so that of several processes that ask at once one computes.
    """
    file = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode('/'.join(of))).hexdigest()[:32]}.json"
    lock = FileLock(f"{file}.lock")
    with suppress(OSError, NotImplementedError):  # read-only, or without locks: everything is computed again
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        known: dict[str, tuple[str, str]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):  # none yet, or damaged
            content = json.loads(file.read_bytes())
            known = {str(name): (str(stamp), str(digest)) for name, (stamp, digest) in content.items()}
        before = dict(known)
        yield known
        if lock.is_locked and known != before:
            with suppress(OSError):
                partial = file.with_suffix(".part")
                partial.write_text(json.dumps(known))
                partial.replace(file)
    finally:
        lock.release()
