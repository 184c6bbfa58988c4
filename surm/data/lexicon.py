"""`valence`: is a word good or bad? The lexicon of vaderSentiment, split so that related words never part."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from surm.data.base import Corpus, Split, complement, holdout, majority_baseline
from surm.shared.assets import Asset

LEXICON = Asset("vaderSentiment", "vaderSentiment/vader_lexicon.txt", version="3.3.2", installed_by="make setup")
STEM_LETTERS = 5
SHORTEST_WORD = 4  # letters; three-letter entries are mostly acronyms of chats
TEST_WORDS = 2000


def valence() -> Corpus:
    """One English word; the label is the sign of its mean rating by ten people: 5,052 training and 2,007 test words.

    Source: vaderSentiment (MIT), Hutto and Gilbert 2014. Kept are the 7,059 entries of at least four ASCII letters, of
    7,520 (the others are emoticons, acronyms and spellings with digits or signs); 44 % are positive.
    Split by stem (see `stem_groups`), as is the selection slice: spelling then says little about a test word, whereas
    after a random split looking up its first five letters answers 87 %.
    Shows whether a method brings out what a language model knows about words. Does not show anything about sentences;
    ratings near zero are noisy labels, and words with a prefix (happy, unhappy) do not count as related.
    """
    ratings = {}
    for line in LEXICON.locate().read_text(encoding="utf-8").splitlines():
        word, mean, *_ = line.split("\t")
        if word.isascii() and word.isalpha() and len(word) >= SHORTEST_WORD:
            ratings[word] = float(mean)
    words = sorted(ratings)
    groups = stem_groups(words)
    everything = Split(words, np.array([ratings[word] > 0 for word in words], dtype=np.int64))

    test = holdout([groups[word] for word in words], everything.labels, TEST_WORDS, "valence:test")
    train = everything.subset(complement(test, len(words)))
    keys = [groups[word] for word in train.inputs]
    selection = holdout(keys, train.labels, len(train) // 5, "valence:selection")
    return Corpus("text", ("negative", "positive"), train, everything.subset(test), selection, baselines=baselines)


def stem_groups(words: Iterable[str]) -> dict[str, str]:
    """The group of each word, named by its shortest stem: words whose stems begin alike are together.

    A stem is the first five letters, less a final e or y of a word that has no more: so abuse, abusing and abuser, or
    happy and happiness, are one group. Stems that begin with another stem join it, which makes the relation transitive.
    """
    stems = {word: _stem(word) for word in words}
    group: dict[str, str] = {}
    shortest = ""
    for stem in sorted(set(stems.values())):  # in this order, what begins with a stem follows it directly
        if not (shortest and stem.startswith(shortest)):
            shortest = stem
        group[stem] = shortest
    return {word: group[stem] for word, stem in stems.items()}


def _stem(word: str) -> str:
    if len(word) <= STEM_LETTERS and word.endswith(("e", "y")):
        return word[:-1]
    return word[:STEM_LETTERS]


def baselines(train: Split, evaluation: Split) -> dict[str, float]:
    """The majority, and a look-up of a word's first five letters in the training words (the majority when absent)."""
    seen: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for word, label in zip(train.inputs, train.labels.tolist(), strict=True):
        seen[word[:STEM_LETTERS]][label] += 1
    majority = Counter(train.labels.tolist())
    answers = [seen.get(word[:STEM_LETTERS], majority).most_common(1)[0][0] for word in evaluation.inputs]
    return majority_baseline(train, evaluation) | {"prefix look-up": float(np.mean(evaluation.labels == answers))}
