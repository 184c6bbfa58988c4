"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from surm.shared.errors import StorageError


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Tell in one sentence which file could not be written, and why.

    Raises:
        StorageError: the disk is full, the folder read-only, or the like.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        file, reason = getattr(error, "filename", None) or path, getattr(error, "strerror", None) or error
        raise StorageError(
            f"{file} cannot be written ({reason}): make room or choose another output_dir; what was there before is "
            "untouched."
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, flush it to the disk, rename: a reader sees the old file or the new one, never half.

    Raises:
        StorageError: it cannot be written; an older file is as before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
