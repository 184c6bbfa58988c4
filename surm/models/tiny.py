"""`tiny_bert` and `tiny_vit`: random weights from a fixed seed, two layers; they need no file and are for tests."""

import string

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from surm.models.backbone import Backbone, initialise_head

SEED = 20240617
PATCH = 7  # pixels
IMAGE_SIZE = 28  # pixels
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_bert(weights: None, content_hash: str, *, num_labels: int) -> Backbone:
    """A BERT of width 32 that reads letters, digits and punctuation one by one."""
    tokenizer = character_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = BertForSequenceClassification(config)
    initialise_head(module, ("classifier",))
    return Backbone(module, ("classifier",), "text", content_hash, tokenizer=tokenizer)


def load_vit(weights: None, content_hash: str, *, num_labels: int, image_size: int = IMAGE_SIZE) -> Backbone:
    """A timm ViT of width 48 with fused query, key and value; `image_size` is a multiple of 7 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = VisionTransformer(
            img_size=image_size,
            patch_size=PATCH,
            embed_dim=48,
            depth=2,
            num_heads=3,
            mlp_ratio=2.0,
            num_classes=num_labels,
        )
    initialise_head(module, ("head",))
    return Backbone(module, ("head",), "image", content_hash, image_size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's WordPiece over lower-case ASCII characters, as word beginnings and as `##` continuations."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = (*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
