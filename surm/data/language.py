"""Causal language modelling: text in, the next token out; the loss is on the answers alone."""

import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from surm.data.base import Answers, Example, Examples, Objective, Split
from surm.data.encode import EncodedDataset
from surm.data.metrics import compute_metrics
from surm.models.backbone import Backbone
from surm.models.output import OutputLayer, handing_on
from surm.shared.errors import DataError

IGNORED = -100  # the label of a token that is no part of an answer, as torch and transformers have it
CHUNK = 2**24  # logits that stand in memory at once, 64 MiB of float32


class Piece(NamedTuple):
    """A part of an example's text, and whether it is an answer."""

    text: str
    is_answer: bool


Tokens = tuple[Tensor, Tensor]  # of one example: its tokens, and its labels, which are the tokens of answers


class NextToken(Objective):
    """The next token of text, at the places where it belongs to an answer.

    The loss is the mean over examples of the mean log-loss of their answers' tokens, in nats, so that each example
    counts the same and neither the batch, nor accumulation, nor the number of processes changes what a step learns
    from. Padding stands on the right, where causal attention does not see it, and has no label.

    An answer counts as right when each of its tokens is the most probable one after what is right before it. That is
    the same as that greedy generation gives it: up to its first wrong token, what was generated is what is right.

    Args:
        tokens: of a split for a backbone, what each example is.
        metrics: names, the primary one first.
    """

    predicts = "tokens"

    def __init__(
        self, tokens: Callable[[Split, Backbone], Sequence[Tokens]], metrics: tuple[str, ...] = ("exact_match",)
    ) -> None:
        self.tokens = tokens
        self.metrics = metrics

    def examples(self, split: Split, backbone: Backbone) -> Examples:
        tokenizer = backbone.tokenizer
        assert tokenizer is not None
        tokens = list(self.tokens(split, backbone))
        lengths = [len(ids) for ids, _ in tokens]
        most = getattr(backbone.module.config, "max_position_embeddings", None) or math.inf
        if max(lengths) > most:
            raise DataError(
                f"an example has {max(lengths):,} tokens, but the model reads at most {most:,}: give shorter "
                "ones, or a smaller dataset.block_size."
            )
        padding = {"input_ids": tokenizer.pad_token_id or 0, "labels": IGNORED}
        examples = Split(tokens, np.ones(len(tokens), dtype=np.int64))
        return EncodedDataset(examples, _named, padding, lengths=lengths)

    def loss(self, module: nn.Module, batch: Example) -> Tensor:
        places = _answers(module, batch)
        if fused := _fused(places.states.device):
            layer = places.layer
            means = [
                fused(layer.weight, places.states[of], places.targets[of], layer.bias)
                for of in (places.example == number for number in range(places.examples))
            ]
            return torch.stack(means).mean()
        losses, _ = token_losses(places.states, places.targets, places.layer)
        return (places.sums(losses) / places.sums(torch.ones_like(losses))).mean()

    def answer(self, module: nn.Module, batch: Example) -> tuple[Tensor, ...]:
        places = _answers(module, batch)
        losses, predicted = token_losses(places.states, places.targets, places.layer)
        right = (predicted == places.targets).to(losses.dtype)
        return places.sums(losses), places.sums(torch.ones_like(losses)), places.sums(right)

    def score(self, answers: tuple[Tensor, ...]) -> Answers:
        losses, tokens, right = (part.double() for part in answers)
        metrics = compute_metrics(self.metrics, tokens.numpy(), right.numpy())
        loss = float(losses.sum() / tokens.sum())
        metrics |= {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
        return Answers(tokens.tolist(), right.tolist(), (losses / tokens).tolist(), metrics)


def _named(tokens: Tokens) -> Example:
    ids, labels = tokens
    return {"input_ids": ids, "labels": labels}


# --- the loss, some places at a time ----------------------------------------------------------------------------------


class Places(NamedTuple):
    """The N places of a batch of B whose next token belongs to an answer."""

    states: Tensor  # (N, n): hidden states at the output layer
    targets: Tensor  # (N,): the next tokens
    example: Tensor  # (N,): which of the batch's
    examples: int  # B
    layer: OutputLayer

    def sums(self, values: Tensor) -> Tensor:
        """Of values (N,), the sum of each example (B,)."""
        return values.new_zeros(self.examples).index_add(0, self.example, values)


def _answers(module: nn.Module, batch: Example) -> Places:
    inputs = dict(batch)
    labels = inputs.pop("labels")[:, 1:]
    with handing_on(module) as layer:
        states = module(**inputs).logits[:, :-1]
    chosen = labels != IGNORED
    return Places(states[chosen], labels[chosen], chosen.nonzero()[:, 0], len(labels), layer)


def token_losses(states: Tensor, targets: Tensor, layer: OutputLayer, rows: int = 0) -> tuple[Tensor, Tensor]:
    """The log-loss of each target, in nats, and the most probable word in its place.

    Logits are made for some rows at a time and made again for the gradient, so that those of all places never stand in
    memory together; that costs one more product of the output layer.

    Args:
        states: (N, n) at the output layer.
        targets: (N,), words.
        layer: gives logits of rows of `states`.
        rows: at a time; 0 is as many as have 2^24 logits.

    Returns:
        Losses (N,) in float32, or float64 of such states; words (N,), which have no gradient.
    """
    rows = rows or max(1, CHUNK // layer.out_features)
    starts = range(0, len(states), rows)
    parts = ((states[first : first + rows], targets[first : first + rows]) for first in starts)
    if torch.is_grad_enabled():
        found = [checkpoint(_losses, part, words, layer, use_reentrant=False) for part, words in parts]
    else:
        found = [_losses(part, words, layer) for part, words in parts]
    losses, predicted = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(predicted)


def _losses(states: Tensor, targets: Tensor, layer: OutputLayer) -> tuple[Tensor, Tensor]:
    logits = layer.logits(states)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1)


def _fused(device: torch.device) -> Any:
    """Liger's kernel for the mean loss of rows, on CUDA where it is installed; else None.

    Its losses of single rows (reduction "none") have wrong gradients where rows count differently, so it is asked for
    the mean of one example at a time.
    """
    return _liger() if device.type == "cuda" else None


@cache
def _liger() -> Any:
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()


# --- from text to tokens ----------------------------------------------------------------------------------------------


def tokens_of(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase, *, begins: bool = True) -> Tokens:
    """The tokens of an example; pieces are tokenised one by one, so that no token reaches from question to answer.

    begins: with the token that the tokenizer puts before a text, if it does so.
    """
    ids: list[int] = list(tokenizer("")["input_ids"]) if begins else []
    labels = [IGNORED] * len(ids)
    for text, is_answer in pieces:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += found
        labels += found if is_answer else [IGNORED] * len(found)
    labels[0] = IGNORED  # nothing comes before it
    return torch.tensor(ids), torch.tensor(labels)


def questions(split: Split, backbone: Backbone, *, ends: bool) -> list[Tokens]:
    """Of pairs (question, answer); with `ends`, the answer ends with the token that ends a text."""
    tokenizer = backbone.tokenizer
    assert tokenizer is not None
    end = end_of_text(tokenizer)[0] if ends else ""
    return [tokens_of((Piece(asked, False), Piece(answer + end, True)), tokenizer) for asked, answer in split.inputs]


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """The token that ends a text, and its number.

    Raises:
        DataError: the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise DataError("the model's tokenizer has no token that ends a text: name one, eos_token, in its files.")
    return tokenizer.eos_token, tokenizer.eos_token_id
