"""Files of a model in the layout of the Hugging Face hub: a folder on disk, or a repository at a revision."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DESCRIPTION_FILES = ("*.json", "*.txt", "*.model")  # configuration, image processor, tokenizer: kilobytes
# The first kind that is there is taken; OpenCLIP's own format is what some CLIP repositories hold.
WEIGHT_FILES = (
    "model.safetensors",
    "model-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "open_clip_model.safetensors",
)
from surm.shared.errors import ModelError, ModelNotFoundError

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
        """Refuse a `path` that is no folder, or without configuration or weights; nothing is read of the weights."""
        if self.path is not None:
            self.read_config()
            self.weight_files()

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
        except ValueError:
            raise ModelError(f"{file} is not valid JSON{self._way_out()}") from None
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
        from safetensors.torch import load_file

        state: dict[str, Tensor] = {}
        for file in self.weight_files():
            if file.suffix == ".safetensors":
                state |= load_file(file)
            else:
                state |= torch.load(file, map_location="cpu", weights_only=True)
        return state

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


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
