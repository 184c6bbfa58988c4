"""Files that are written whole or not at all, and read whole or not at all."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Never

from safetensors import SafetensorError

from surm.shared.errors import ConfigError, RecordError, StorageError


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Tell in one sentence which file could not be written, and why.

    Raises:
        StorageError: the disk is full, the folder read-only, or the like.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        names = (getattr(error, name, None) for name in ("filename2", "filename"))  # of a rename the target
        file, reason = next(filter(None, names), path), getattr(error, "strerror", None) or error
        raise StorageError(
            f"{file} cannot be written ({reason}): make room or choose another output_dir; what was there before is "
            "untouched."
        ) from None


def check_output(folder: str | Path) -> None:
    """Refuse a folder of results that cannot be written to, before anything is computed; writes nothing.

    Raises:
        ConfigError: one sentence with the folder and the way out.
    """
    path = Path(folder)
    if not str(folder).strip() or str(folder).startswith("~"):
        raise ConfigError(f"output_dir={str(folder)!r} names no folder: write it out, as in outputs or ../outputs.")
    try:
        place = next(place for place in (path, *path.absolute().parents) if place.exists() or place.is_symlink())
        fault = None if place.is_dir() else "is no folder"
        if fault is None and not os.access(place, os.W_OK | os.X_OK):
            fault = "is read-only"
    except OSError as error:
        place, fault = path, f"cannot be used ({error.strerror})"
    if fault:
        raise ConfigError(f"{place} {fault}: choose another folder, such as output_dir=outputs.")


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


def read_json(path: Path) -> Any:
    """The JSON value of a file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        RecordError: why it cannot be read, in a few words.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        reason = error.strerror or "cannot be read"
    except json.JSONDecodeError as error:
        reason = f"no JSON from line {error.lineno}"
    except UnicodeDecodeError:
        reason = "no text"
    except RecursionError:
        reason = "nested too deep"
    except ValueError:
        reason = "a number of too many digits"
    raise RecordError(reason)


def _refuse(constant: str) -> Never:
    raise RecordError(f"{constant} is no number")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)
