"""What is asked once and answered by one record: a run, or a part of a study."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from surm.records.claim import Claim, Holder, living_holder
from surm.records.record import Record, read_record
from surm.shared.errors import Claimed, RecordError, StorageError


def signature(question: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a question's canonical JSON."""
    return hashlib.sha256(canonical(question).encode()).hexdigest()[:12]


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run or of a part of a study, and the files in it."""

    path: Path

    @classmethod
    def of(cls, output_dir: str | Path, signature: str) -> Self:
        return cls(Path(output_dir) / "runs" / signature)

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.json"

    @property
    def adapter(self) -> Path:
        """The trained adapter in PEFT's format."""
        return self.path / "adapter"

    @property
    def trained(self) -> Path:
        """The trained parameters of a method that is no adapter of PEFT's."""
        return self.path / "trained.safetensors"

    def tidy(self) -> None:
        """Remove what a process that was killed right after the finished record left: checkpoint, claim, half files."""
        left = (self.checkpoint, self.path / "claim.json", *self.path.glob(".*.tmp"))
        if any(map(os.path.lexists, left)) and living_holder(self.path) is None:
            with suppress(Claimed, OSError, StorageError), Claim(self.path):  # else by the next look
                self.checkpoint.unlink(missing_ok=True)


class Recorded(ABC):
    """A question with an identity of its own, whose answer is one record."""

    @property
    @abstractmethod
    def asked(self) -> dict[str, Any]:
        """What the record's signature is made of, as it stands in the record."""

    @property
    @abstractmethod
    def output_dir(self) -> str:
        """The folder that holds `runs/<signature>/`."""

    @cached_property
    def signature(self) -> str:
        return signature(self.asked)

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.output_dir, self.signature)

    def record(self) -> Record | None:
        """The record, or None where there is none.

        Raises:
            RecordError: the file is not a record.
        """
        return read_record(self.folder.record)

    def finished_record(self) -> Record | None:
        """The record if the question is answered.

        Raises:
            RecordError: the file is not a record.
        """
        record = self.record()
        if record is None or not record.finished:
            return None
        self.folder.tidy()
        return record

    def status(self) -> str:
        """finished | interrupted | failed | damaged | running | missing."""
        if self.holder() is not None:
            return "running"
        try:
            record = self.record()
        except RecordError:
            return "damaged"
        return record.status if record is not None else "missing"

    def holder(self) -> Holder | None:
        """The process that works on it now, as its claim says, or None."""
        return living_holder(self.folder.path)
