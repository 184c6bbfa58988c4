"""Text as it stands, packed into blocks: a user's folder (`text`), and the docstrings of Python (`docstrings`)."""

import ast
import sysconfig
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from surm.data.base import Corpus, Integers, Split, complement, holdout
from surm.data.documents import files_of, folder_hash, json_lines, read_splits, read_text
from surm.data.hub import DataFacts
from surm.data.language import IGNORED, NextToken, Tokens, end_of_text
from surm.models.backbone import Backbone
from surm.shared.errors import DataError

FACTS: Mapping[str, DataFacts] = {}
ENDINGS = (".txt", ".md", ".jsonl")
METRICS = ("token_accuracy",)
NOT_DOCUMENTED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


def read(name: str, path: str | None, columns: Mapping[str, str], *, block_size: int) -> Corpus:
    """A folder of text: each .txt or .md file is a document, and so is the `text` of each line of a .jsonl file.

    Files train* and test* (or val*, dev*, validation*) are the splits; else a tenth of the documents is held out.
    """
    first, second = read_splits(name, path, ENDINGS, _documents, "text")
    return _corpus(first, second, block_size, source_hash=folder_hash(name, path, ENDINGS))


def check(name: str, path: str | None, columns: Mapping[str, str]) -> None:
    """Refuse, in one sentence, a folder without such files."""
    files_of(name, path, ENDINGS)


def revision(name: str, path: str | None, columns: Mapping[str, str]) -> str:
    """A user's own data are named by their content: the start of the hash over the files."""
    return folder_hash(name, path, ENDINGS)[:12]


def docstrings(block_size: int) -> Corpus:
    """The docstrings of Python's standard library, a document a module: prose about programs, without a hub.

    Source: the running Python's own files (PSF licence), so the text is that of its version, which the run's identity
    holds. Test suites are left out. Held out is a tenth of the modules, by sha256 of the top package's name, so that
    no package is on both sides; so is the selection slice.
    Shows how well a language model takes to a kind of text: loss, perplexity and the share of tokens guessed first.
    Models of code have most likely seen this text.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, str]] = []
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if not NOT_DOCUMENTED & set(inside.parts) and (text := _docstrings(file)):
            found.append((inside.parts[0].removesuffix(".py"), text))
    packages = [package for package, _ in found]
    everything = Split([text for _, text in found], np.zeros(len(found), dtype=np.int64))
    held_out = holdout(packages, everything.labels, len(found) // 10, "docstrings:test")
    rest = complement(held_out, len(found))
    train = everything.subset(rest)
    selection = holdout([packages[i] for i in rest], train.labels, len(rest) // 5, "docstrings:selection")
    return _corpus(train, everything.subset(held_out), block_size, selection=selection)


def _corpus(
    train: Split,
    test: Split,
    block_size: int,
    *,
    selection: Integers | None = None,
    source_hash: str | None = None,
) -> Corpus:
    return Corpus(
        "text",
        (),
        train,
        test,
        selection,
        metrics=METRICS,
        baselines=lambda train, evaluation: {},
        source_hash=source_hash,
        objective=NextToken(partial(blocks, block_size=block_size), METRICS),
    )


def _documents(file: Path) -> Iterator[str]:
    if file.suffix.lower() != ".jsonl":
        if text := read_text(file).strip():
            yield text
        return
    for place, row in json_lines(file):
        found = row.get("text")
        if not isinstance(found, str) or not found.strip():
            raise DataError(f'{place}, has no text: write it as {{"text": ...}}, or drop the line.')
        yield found


def _docstrings(file: Path) -> str:
    """Those of a module, its classes and functions, in their order."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a template, or of another Python
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n\n".join(text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node)))


def blocks(split: Split, backbone: Backbone, *, block_size: int) -> list[Tokens]:
    """All documents one after the other, each ended by the end of a text, cut into blocks; the last may be shorter.

    The first token of a block is not predicted, as nothing stands before it.
    """
    tokenizer = backbone.tokenizer
    assert tokenizer is not None
    _, end = end_of_text(tokenizer)
    ids: list[int] = []
    for text in split.inputs:
        ids += [*tokenizer(text)["input_ids"], end]
    cut = [torch.tensor(ids[first : first + block_size]) for first in range(0, len(ids), block_size)]
    cut = [block for block in cut if len(block) > 1]
    return [(block, torch.cat([torch.tensor([IGNORED]), block[1:]])) for block in cut]
