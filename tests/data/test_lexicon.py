import csv

import numpy as np
import pandas as pd
import pytest

from surm.data import load_task
from surm.data.base import Split
from surm.data.lexicon import LEXICON, baselines, stem_groups
from tests.tools.skips import needs


@pytest.fixture(scope="module")
def task():
    return load_task("valence")


def test_related_words_share_a_group():
    for related in (
        ("abuse", "abuses", "abusing", "abusive"),
        ("happy", "happier", "happiness"),
        ("love", "loved", "loving", "lovely"),
        ("worry", "worried", "worrying"),
    ):
        assert len(set(stem_groups(related).values())) == 1
    assert len(set(stem_groups(["good", "gory", "grand", "unhappy", "happy"]).values())) == 5


def test_groups_are_transitive():
    """Neither of the longer words begins the other, but the shortest begins both."""
    groups = stem_groups(["trusty", "true", "truthful"])
    assert set(groups.values()) == {"tru"}
    assert len(set(stem_groups(["trusty", "truthful"]).values())) == 2


@needs("valence")
@pytest.mark.parametrize("evaluate_on", ["test", "selection"])
def test_no_stem_is_on_both_sides(evaluate_on):
    task = load_task("valence", evaluate_on=evaluate_on)
    train, held_out = (
        {word.rstrip("ey") if len(word) <= 5 else word for word in split.inputs}
        for split in (task.train, task.evaluation)
    )
    for one, other in ((train, held_out), (held_out, train)):
        beginnings = {word[:length] for word in one for length in range(3, 6)}
        assert not beginnings & {word[:5] for word in other}


@needs("valence")
def test_words_and_labels_are_the_lexicon_s(task):
    with LEXICON.locate().open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    letters = set("abcdefghijklmnopqrstuvwxyz")
    expected = {row[0]: float(row[1]) > 0 for row in rows if set(row[0]) <= letters and len(row[0]) >= 4}
    words = [*task.train.inputs, *task.evaluation.inputs]
    assert len(words) == len(set(words)) == 7059
    assert dict(zip(words, [*task.train.labels, *task.evaluation.labels], strict=True)) == expected


@needs("valence")
def test_look_up_is_no_better_than_the_majority(task):
    """No test word has its first five letters in the training words, so every answer is the majority's."""
    positives = int(task.train.labels.sum())
    majority = int(positives > len(task.train) - positives)
    agreement = sum(label == majority for label in task.evaluation.labels) / len(task.evaluation)
    assert task.baselines == {"majority": pytest.approx(agreement), "prefix look-up": pytest.approx(agreement)}


@needs("valence")
def test_look_up_finds_the_answer_after_a_random_split(task):
    """Why the split is by stem: recomputed here with pandas, and about 87 %."""
    words = np.array([*task.train.inputs, *task.evaluation.inputs])
    labels = np.concatenate([task.train.labels, task.evaluation.labels])
    order = np.random.default_rng(0).permutation(len(words))
    test, train = order[:2000], order[2000:]
    result = baselines(Split(words[train].tolist(), labels[train]), Split(words[test].tolist(), labels[test]))[
        "prefix look-up"
    ]

    table = pd.DataFrame({"prefix": [word[:5] for word in words], "label": labels})
    answers = table.iloc[train].groupby("prefix")["label"].agg(lambda seen: float(seen.mean()))
    share = table.iloc[test]["prefix"].map(answers).fillna(labels[train].mean())
    decided = share != 0.5  # what a tie is answered with is the rule's own business
    correct = (share > 0.5) == table.iloc[test]["label"]
    assert correct[decided].sum() <= result * len(test) <= correct[decided].sum() + (~decided).sum()
    assert 0.84 < result < 0.90
