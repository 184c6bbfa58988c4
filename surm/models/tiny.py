"""`tiny_bert`, `tiny_llama` and `tiny_vit`: random weights from a fixed seed, two layers, no file; for tests."""

import string

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from surm.models.backbone import Backbone, initialise_head
from surm.models.output import replace_output_layer

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


def load_llama(weights: None, content_hash: str, *, num_labels: int) -> Backbone:
    """A Llama of width 32 with four query heads, two key and value heads, and a tied output layer, that reads bytes."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = LlamaForCausalLM(config)
    replace_output_layer(module)
    return Backbone(module, (), "text", content_hash, tokenizer=tokenizer)


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


CHAT = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a chat template."""
    special = ("<|pad|>", "<|start|>", "<|end|>")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate((*special, *letters))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    made.chat_template = CHAT
    return made


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
