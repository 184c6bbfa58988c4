"""Pairs of a question and an answer that are made by rule: `uuid`, to be memorised, and `sums`, to be learned."""

import hashlib
from functools import partial

import numpy as np

from surm.data.base import Corpus, Split
from surm.data.language import NextToken, questions

METRICS = ("exact_match", "token_accuracy")
TRAIN_SUMS, TEST_SUMS = 4000, 500
SMALLEST, LARGEST = 100, 999


def uuid(pairs: int) -> Corpus:
    """Random pairs of 32 hexadecimal digits: after the first the model says the second; the same for every seed.

    Source: the paper's Fig. 8 and appendix B.1, after MoRA (Jiang et al. 2024): a random answer follows from nothing
    else, so capacity alone helps. Digits are those of sha256, so they are the same everywhere.
    The training pairs are the reported ones: what is asked is what was memorised, not what follows from it. Settings
    are chosen on other pairs.
    Shows how much a method can store in so many steps. Does not show that it learns anything.
    """
    return _uuid(pairs, "uuid")


def _uuid(pairs: int, salt: str) -> Corpus:
    inputs = [(f"{_digits(salt, 'key', i)} =", f" {_digits(salt, 'value', i)}") for i in range(pairs)]
    split = Split(inputs, np.zeros(pairs, dtype=np.int64))
    return Corpus(
        "text",
        (),
        split,
        split,
        metrics=METRICS,
        baselines=lambda train, evaluation: {"chance": 16.0**-32},
        objective=NextToken(partial(questions, ends=False), METRICS),
        tuning=None if salt == "tuning" else partial(_uuid, pairs, "tuning"),
    )


def _digits(salt: str, what: str, index: int) -> str:
    return hashlib.sha256(f"{salt}:{what}:{index}".encode()).hexdigest()[:32]


def sums() -> Corpus:
    """Sums of two numbers of three digits: 4,000 training and 500 test pairs, in an order of sha256.

    No sum of two numbers is in both splits, in either order of the two. The answer ends with the end of the text.
    Shows a rule learned from examples, checked by whole answers. Does not show anything about language.
    """
    chosen: dict[tuple[int, int], tuple[str, str]] = {}
    index = 0
    while len(chosen) < TRAIN_SUMS + TEST_SUMS:
        number = int.from_bytes(hashlib.sha256(f"sums:{index}".encode()).digest())
        size = LARGEST - SMALLEST + 1
        one, other = SMALLEST + number % size, SMALLEST + number // size % size
        chosen.setdefault((min(one, other), max(one, other)), (f"{one} + {other} =", f" {one + other}"))
        index += 1
    inputs = list(chosen.values())
    train, test = (Split(part, np.zeros(len(part), dtype=np.int64)) for part in _cut(inputs))
    return Corpus(
        "text",
        (),
        train,
        test,
        metrics=METRICS,
        baselines=most_frequent_answer,
        objective=NextToken(partial(questions, ends=True), METRICS),
    )


def _cut(inputs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return inputs[:TRAIN_SUMS], inputs[TRAIN_SUMS:]


def most_frequent_answer(train: Split, evaluation: Split) -> dict[str, float]:
    """Exact match of always giving the training split's most frequent answer, the first of several."""
    answers = [answer for _, answer in train.inputs]
    common = max(sorted(set(answers)), key=answers.count)
    return {"majority": float(np.mean([answer == common for _, answer in evaluation.inputs]))}
