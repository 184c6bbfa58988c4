"""Conversations (`instruct`): JSONL files with `messages`, in the model's chat template; answers alone are trained."""

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from surm.data.base import Corpus, Split
from surm.data.documents import files_of, folder_hash, json_lines, read_splits
from surm.data.hub import DataFacts
from surm.data.language import IGNORED, NextToken, Piece, Tokens, tokens_of
from surm.models.backbone import Backbone
from surm.shared.errors import DataError

FACTS: Mapping[str, DataFacts] = {}
ENDINGS = (".jsonl",)
METRICS = ("token_accuracy", "exact_match")
ROLES = ("system", "user", "assistant")
FORM = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'

Messages = tuple[tuple[str, str], ...]  # of role and content


def read(name: str, path: str | None, columns: Mapping[str, str], *, block_size: int) -> Corpus:
    """A folder of conversations, one a line, as {"messages": [{"role": ..., "content": ...}, ...]}.

    Files train* and test* (or val*, dev*, validation*) are the splits; else a tenth of the conversations is held out.
    A conversation is cut after `block_size` tokens: an answer is trained and scored as far as it reaches.
    """
    first, second = read_splits(name, path, ENDINGS, _conversations, "conversation")
    return Corpus(
        "text",
        (),
        first,
        second,
        metrics=METRICS,
        baselines=lambda train, evaluation: {},
        source_hash=folder_hash(name, path, ENDINGS),
        objective=NextToken(partial(conversations, most=block_size), METRICS),
    )


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, a folder without such files."""
    files_of(name, path, ENDINGS)


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """A user's own data are named by their content: the start of the hash over the files."""
    return folder_hash(name, path, ENDINGS)[:12]


def _conversations(file: Path) -> Iterator[Messages]:
    for place, row in json_lines(file):
        messages = row.get("messages")
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise DataError(f"{place}, is no conversation of {', '.join(ROLES)}: write it as {FORM}.")
        if not any(message["role"] == "assistant" for message in messages):
            raise DataError(
                f"{place}, has no answer of the assistant, which alone is trained: add one, or drop the line."
            )
        yield tuple((message["role"], message["content"]) for message in messages)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
        and bool(message["content"])
    )


def conversations(split: Split, backbone: Backbone, *, most: int) -> list[Tokens]:
    """Each conversation in the tokenizer's chat template; labels are the answers, with what ends them."""
    tokenizer = backbone.tokenizer
    assert tokenizer is not None
    if not tokenizer.chat_template:
        raise DataError("the model's tokenizer has no chat template: give a model that was trained on conversations.")
    found, cut = [], 0
    for messages in split.inputs:
        ids, labels = tokens_of(_pieces(messages, tokenizer), tokenizer, begins=False)
        cut += bool((labels[most:] != IGNORED).any())
        ids, labels = ids[:most], labels[:most]
        if (labels == IGNORED).all():
            raise DataError(
                f"the conversation that begins with {messages[0][1][:40]!r} has no answer within its first {most:,} "
                "tokens: give a larger dataset.block_size, or shorten it."
            )
        found.append((ids, labels))
    if cut:
        warnings.warn(
            f"{cut:,} of {len(found):,} conversations have answers behind their first {most:,} tokens, which are "
            "neither trained nor scored: a larger dataset.block_size keeps them.",
            stacklevel=2,
        )
    return found


def _pieces(messages: Messages, tokenizer: Any) -> Iterator[Piece]:
    """What the template makes of the messages, parted where an answer begins or ends."""
    written = [{"role": role, "content": content} for role, content in messages]
    done = ""
    for number, (role, _) in enumerate(messages):
        if role != "assistant":
            continue
        before = tokenizer.apply_chat_template(written[:number], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(written[: number + 1], tokenize=False)
        if not before.startswith(done) or not after.startswith(before):
            raise DataError(
                "the model's chat template changes earlier messages when one is added, so its answers cannot be told "
                "from the rest: give conversations with one answer, or another model."
            )
        yield Piece(before[len(done) :], False)
        yield Piece(after[len(before) :], True)
        done = after
