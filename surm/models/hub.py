"""Files of a model in the layout of the Hugging Face hub: a folder on disk, or a repository at a revision."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from surm.shared.errors import ModelError, ModelNotFoundError

DESCRIPTION_FILES = ("*.json", "*.txt", "*.model")  # configuration, image processor, tokenizer: kilobytes
# The first kind that is there is taken; OpenCLIP's own format is what some CLIP repositories hold.
WEIGHT_FILES = (
    "model.safetensors",
    "model-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "open_clip_model.safetensors",
)

_REASONS = {
    "RepositoryNotFoundError": "the hub has no such repository",
    "GatedRepoError": "the hub asks for a login",
    "RevisionNotFoundError": "the hub has no such revision",
    "HFValidationError": "which is no name of a repository",
}


@dataclass(frozen=True)
class HubFiles:
    """A model's files: `path`, a folder that holds them, or else `repository` at `revision`, fetched when needed.

    `config` is what is known of the model's config.json without the file; a file in `path` that says otherwise is
    refused as another model's.
    """

    repository: str | None
    revision: str = "main"
    path: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that fetches the files into a folder."""
        revision = "" if self.revision == "main" else f" --revision {self.revision}"
        return f"hf download {self.repository}{revision} --local-dir <folder>"

    @property
    def name(self) -> str:
        """The files as a sentence names them."""
        return f"{self.repository} at revision {self.revision}" if self.path is None else f"model.path={self.path}"

    def check(self) -> None:
        """Refuse a `path` that is no folder, or without configuration or whole weights; of these the heads are read."""
        if self.path is not None:
            self.read_config()
            self.weight_elements()

    def read_config(self) -> dict[str, Any]:
        """The content of config.json, or of `config` where that is known and no folder is given."""
        if self.path is None and self.config:
            return dict(self.config)
        folder = self._folder(DESCRIPTION_FILES)
        file = folder / "config.json"
        if not file.is_file():
            raise ModelNotFoundError(f"{self.name} holds no config.json{self._way_out()}")
        try:
            found: dict[str, Any] = json.loads(file.read_text())
        except (ValueError, RecursionError):
            raise ModelError(f"{file} is not valid JSON{self._way_out()}") from None
        if not isinstance(found, dict):
            raise ModelError(f"{file} holds {type(found).__name__}, not settings by name{self._way_out()}")
        for key, expected in self.config.items():
            # timm writes the name of the weights, behind the dot, elsewhere.
            wanted = expected.split(".")[0] if key == "architecture" else expected
            if key != "model_args" and found.get(key) != wanted:
                raise ModelError(
                    f"{self.name} holds another model: its config.json says {key}={found.get(key)}, "
                    f"not {wanted}{self._way_out()}"
                )
        return found

    def locate(self) -> Path:
        """The folder with configuration and weights; fetched from the hub where no folder was given."""
        self.read_config()
        return self.weight_files()[0].parent

    def weight_files(self) -> list[Path]:
        """The files of the weights, more than one where they are sharded."""
        for pattern in WEIGHT_FILES:
            found = sorted(self._folder((*DESCRIPTION_FILES, pattern)).glob(pattern))
            if found:
                return found
        raise ModelNotFoundError(f"{self.name} holds no model.safetensors or pytorch_model.bin{self._way_out()}")

    def read_weights(self) -> dict[str, Tensor]:
        """All tensors by name, on the processor."""
        state: dict[str, Tensor] = {}
        for file in self._whole_weight_files():
            with self._reading(file):
                state |= load_file(file) if file.suffix == ".safetensors" else _load_pickled(file)
        return state

    def weight_elements(self) -> int:
        """The numbers in the weight files, from what they say of themselves; refuses cut, empty or missing ones."""
        total = 0
        for file in self._whole_weight_files():
            with self._reading(file):
                if file.suffix == ".safetensors":
                    with safe_open(file, "pt") as opened:  # compares the file's size with its table of contents
                        names = list(opened.keys())
                        total += sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
                else:
                    total += sum(tensor.numel() for tensor in _load_pickled(file).values())
        return total

    def _whole_weight_files(self) -> list[Path]:
        """`weight_files`, of sharded ones every shard and the index that assigns tensors to them."""
        files = self.weight_files()
        kind, _, shards = files[0].stem.partition("-")
        count = re.fullmatch(r"\d+-of-(\d+)", shards)
        if count is None:
            return files
        index = files[0].with_name(f"{kind}{files[0].suffix}.index.json")
        if len(files) != int(count[1]):
            raise ModelNotFoundError(f"{self.name} holds {len(files)} of {int(count[1])} weight files{self._way_out()}")
        try:
            assigned = set(json.loads(index.read_text())["weight_map"].values())
        except FileNotFoundError:
            return files
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{index} is damaged{self._way_out()}") from None
        if lost := sorted(map(str, assigned - {file.name for file in files})):
            raise ModelNotFoundError(f"{index} names {lost[0]}, which is not there{self._way_out()}")
        return files

    @contextmanager
    def _reading(self, file: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a cut or foreign file; safetensors and torch have no common class
            reason = " ".join(str(error).split())[:150].rstrip(".:") or type(error).__name__
            raise ModelError(f"{file} is no weight file, or a part of one ({reason}){self._way_out()}") from None

    def sha256(self) -> str:
        """Hash of the weight file; of the files' hashes, in order of name, where they are sharded."""
        hashes = [_sha256(file) for file in self.weight_files()]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def _folder(self, patterns: tuple[str, ...]) -> Path:
        if self.path is not None:
            folder = Path(self.path).expanduser()
            if not folder.is_dir():
                raise ModelNotFoundError(f"model.path={self.path} is no folder{self._way_out()}")
            return folder
        assert self.repository is not None
        return _snapshot(self.repository, self.revision, patterns, self._way_out())

    def _way_out(self) -> str:
        if self.repository is None:
            return ": give model.path=<folder with config.json and the weights, in the hub's layout>."
        return f": `{self.command}` fetches the files, then model.path=<folder> reads them without a network."


@cache
def _snapshot(repository: str, revision: str, patterns: tuple[str, ...], way_out: str) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        # Configurations of exports to other runtimes stand in folders of their own.
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(patterns), ignore_patterns="*/*")
    except Exception as error:  # of the connection, of the hub or of the name; no common class below
        reason = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _REASONS.get(type(error).__name__, "no network")
        )
        raise ModelNotFoundError(
            f"{repository} at revision {revision} is not on this machine and cannot be fetched, {reason}{way_out}"
        ) from None
    return Path(folder)


def _load_pickled(file: Path) -> dict[str, Tensor]:
    """Tensors of a .bin file; no code in it is run. Mapped into memory where its format allows it."""
    with suppress(RuntimeError):  # not torch's zip format
        return cast(dict[str, Tensor], torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    return cast(dict[str, Tensor], torch.load(file, map_location="cpu", weights_only=True))


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
