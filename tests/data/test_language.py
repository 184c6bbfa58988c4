"""Language modelling: the loss in chunks, what is labelled, the data sets, and bad files."""

import asyncio
import inspect
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from surm.data import check_data, data_hash, data_options, load_task
from surm.data.language import IGNORED, NextToken, Piece, token_losses, tokens_of
from surm.data.order import WINDOW, EpochBatches
from surm.models import load_backbone
from surm.models.output import OutputLayer
from surm.models.tiny import byte_tokenizer
from surm.shared.errors import DataError


@pytest.fixture(scope="module")
def llama():
    return load_backbone("tiny_llama", num_labels=1, predicts="tokens")


@pytest.fixture(scope="module")
def double(llama):
    backbone = load_backbone("tiny_llama", num_labels=1, predicts="tokens")
    backbone.module.double().eval()
    return backbone


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_in_chunks_is_the_whole_loss(rows, bias):
    torch.manual_seed(0)
    layer = OutputLayer(5, 11, bias=bias).double()
    states, targets = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randint(11, (7,))
    weights = torch.rand(7, dtype=torch.float64)
    parameters = [states, *layer.parameters()]

    logits = states @ layer.weight.T + (layer.bias if bias else 0)
    expected = torch.logsumexp(logits, dim=1) - logits[range(7), targets]
    losses, predicted = token_losses(states, targets, layer, rows)
    assert torch.allclose(losses, expected, rtol=0, atol=1e-14)
    assert predicted.equal(logits.argmax(dim=1))
    wanted = torch.autograd.grad((weights * expected).sum(), parameters)
    found = torch.autograd.grad((weights * losses).sum(), parameters)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-14) for one, other in zip(found, wanted, strict=True))


def test_no_more_than_a_chunk_of_logits_is_made_at_once():
    sizes = []

    class Watched(OutputLayer):
        def logits(self, states):
            sizes.append(len(states))
            return super().logits(states)

    states = torch.randn(10, 4, requires_grad=True)
    losses, _ = token_losses(states, torch.zeros(10, dtype=torch.long), Watched(4, 6), rows=4)
    losses.sum().backward()
    assert sorted(sizes) == [2, 2, 4, 4, 4, 4]  # forwards, and again for the gradient


def whole_losses(backbone, ids, labels):
    """Of one example without padding, the loss of each labelled token, by logits of all words."""
    logits = backbone.module(input_ids=ids[None]).logits[0, :-1]
    kept = labels[1:] != IGNORED
    return cross_entropy(logits[kept], labels[1:][kept], reduction="none"), logits[kept].argmax(-1) == labels[1:][kept]


def test_a_padded_batch_gives_the_mean_over_examples_and_scores_over_tokens(double):
    """Against each example alone, with its logits whole: loss, gradient, exact match, accuracy and perplexity."""
    task = load_task("sums")
    texts = [("7 =", " 8"), ("a longer question =", " and its answer"), ("x =", " yy")]
    examples = task.objective.examples(replace(task.train, inputs=texts, labels=np.zeros(3)), double)
    batch = examples.collate([examples.unfinished[i] for i in range(3)])
    assert batch["input_ids"].shape == (3, max(examples.lengths))

    alone = [whole_losses(double, *examples.split.inputs[i]) for i in range(3)]
    expected = torch.stack([losses.mean() for losses, _ in alone]).mean()
    loss = task.objective.loss(double.module, dict(batch))
    weight = double.module.model.layers[0].self_attn.q_proj.weight
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    one, other = (torch.autograd.grad(value, weight)[0] for value in (loss, expected))
    assert torch.allclose(one, other, rtol=0, atol=1e-12)

    with torch.no_grad():
        found = task.objective.score(task.objective.answer(double.module, batch))
    losses, right = (torch.cat([pair[i] for pair in alone]) for i in range(2))
    assert found.labels == [len(pair[0]) for pair in alone]
    assert found.metrics["token_accuracy"] == pytest.approx(right.double().mean().item())
    assert found.metrics["exact_match"] == np.mean([bool(pair[1].all()) for pair in alone])
    assert found.metrics["perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-12)
    assert found.losses == pytest.approx([pair[0].mean().item() for pair in alone])


def test_an_answer_is_right_exactly_when_greedy_generation_gives_it(double):
    """Answers that the model itself generates, and the same with one token changed."""
    module, asked = double.module, torch.tensor([5, 6, 7])
    generated = module.generate(asked[None], max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    wrong = generated.clone()
    wrong[5] = (wrong[5] + 1) % 200
    rows = [(ids, torch.where(torch.arange(9) < 3, IGNORED, ids)) for ids in (generated, wrong)]
    objective = NextToken(lambda split, backbone: rows)
    examples = objective.examples(None, double)
    batch = examples.collate([examples.unfinished[i] for i in range(2)])
    with torch.no_grad():
        found = objective.score(objective.answer(module, batch))
    assert found.predictions[0] == found.labels[0] == 6
    assert found.predictions[1] < 6
    assert found.metrics["exact_match"] == 0.5


# --- order ------------------------------------------------------------------------------------------------------------


def test_batches_by_length_hold_all_examples_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 200, size=4 * 2 * WINDOW + 3).tolist()
    plain, sorted_ones = (EpochBatches(len(lengths), 4, 1, lengths=of) for of in (None, lengths))
    batches = list(sorted_ones)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert [len(batch) for batch in batches] == [4] * 2 * WINDOW + [3]

    def padding(of):
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in of)

    assert padding(batches) < 0.1 * padding(plain)
    assert list(sorted_ones) == batches
    sorted_ones.start = 5
    assert list(sorted_ones) == batches[5:]
    sorted_ones.start, sorted_ones.epoch = 0, 1
    assert list(sorted_ones) != batches


# --- data -------------------------------------------------------------------------------------------------------------


def test_uuids_are_random_pairs_that_are_asked_as_they_were_learned():
    task, tuning = (load_task("uuid", options={"pairs": 50}, evaluate_on=on) for on in ("test", "selection"))
    assert len(task.train) == 50
    assert task.train.inputs == task.evaluation.inputs
    assert all(
        re.fullmatch("[0-9a-f]{32} =", key) and re.fullmatch(" [0-9a-f]{32}", value) for key, value in task.train.inputs
    )
    assert len({text for pair in [*task.train.inputs, *tuning.train.inputs] for text in pair}) == 200
    assert load_task("uuid", options={"pairs": 20}).train.inputs == task.train.inputs[:20]
    assert task.content_hash.startswith("0fc30f7bc021")  # records that are published will hold it


def test_sums_are_right_and_no_pair_is_in_both_splits():
    task = load_task("sums")
    assert (len(task.train), len(task.evaluation)) == (4000, 500)
    pairs = []
    for split in (task.train, task.evaluation):
        numbers = [tuple(map(int, re.fullmatch(r"(\d{3}) \+ (\d{3}) =", asked).groups())) for asked, _ in split.inputs]
        assert [f" {one + other}" for one, other in numbers] == [answer for _, answer in split.inputs]
        pairs.append({frozenset(pair) for pair in numbers})
    assert not pairs[0] & pairs[1]
    assert task.baselines["majority"] < 0.01


@pytest.mark.slow
def test_docstrings_are_those_of_modules_and_packages_stay_whole():
    task = load_task("docstrings")
    sides = [
        [
            sum(inspect.getdoc(module) in text for text in split.inputs)
            for module in (json, asyncio.events, asyncio.tasks)
        ]
        for split in (task.train, task.evaluation)
    ]
    assert np.sum(sides, axis=0).tolist() == [1, 1, 1]
    assert sides[0][1] == sides[0][2]  # of one package
    assert 0.1 < len(task.evaluation) / len(task.train) < 0.3


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        if isinstance(rows, str):
            (folder / f"{name}.txt").write_text(rows)
        else:
            lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return str(folder)


def test_text_is_packed_into_blocks(llama, tmp_path):
    path = write(tmp_path, train_a="abcdefg", train_b=[{"text": "hij"}], test="xyz")
    task = load_task("text", path=path, options={"block_size": 8})
    found = task.objective.examples(task.train, llama)
    ids = [example["input_ids"].tolist() for example in map(found.unfinished.__getitem__, range(len(found)))]
    end = llama.tokenizer.eos_token_id
    whole = [*llama.tokenizer("abcdefg")["input_ids"], end, *llama.tokenizer("hij")["input_ids"], end]
    assert ids == [whole[:8], whole[8:]]
    assert found.unfinished[1]["labels"].tolist() == [IGNORED, *whole[9:]]
    assert len(task.objective.examples(task.evaluation, llama)) == 1


def test_a_tenth_of_the_documents_is_held_out_and_equal_ones_stay_together(tmp_path):
    path = write(tmp_path, mine=[{"text": f"document {i // 2}"} for i in range(40)])
    task = load_task("text", path=path)
    assert 4 <= len(task.evaluation) <= 5
    assert not set(task.train.inputs) & set(task.evaluation.inputs)


def chat(*words):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": word} for i, word in enumerate(words)]}


def test_answers_alone_are_labelled_in_the_chat_template(llama, tmp_path):
    path = write(tmp_path, train=[chat("ask", "say", "more", "yes"), chat("a", "b")], test=[chat("a", "b")])
    task = load_task("instruct", path=path)
    found = task.objective.examples(task.train, llama)
    ids, labels = (found.unfinished[0][key] for key in ("input_ids", "labels"))
    whole = llama.tokenizer.apply_chat_template(chat("ask", "say", "more", "yes")["messages"], tokenize=False)
    assert llama.tokenizer.decode(ids) == whole
    assert llama.tokenizer.decode(labels[labels != IGNORED]) == "say<|end|>\nyes<|end|>\n"
    assert labels[labels != IGNORED].equal(ids[labels != IGNORED])


def test_answers_that_are_cut_are_told_and_count_as_far_as_they_reach(llama, tmp_path):
    path = write(tmp_path, train=[chat("ask", "say", "more", "no" * 20), chat("a", "b")], test=[chat("a", "b")])
    task = load_task("instruct", path=path, options={"block_size": 70})
    with pytest.warns(UserWarning, match="1 of 2 conversations have answers behind their first 70 tokens"):
        found = task.objective.examples(task.train, llama)
    labels = found.unfinished[0]["labels"]
    whole = (
        "<|start|>user\nask<|end|>\n<|start|>assistant\nsay<|end|>\n<|start|>user\nmore<|end|>\n<|start|>assistant\n"
    )
    reach = 70 - len(re.sub(r"<\|\w+\|>", "_", whole))  # a byte a token, and one for each special token
    assert llama.tokenizer.decode(labels[labels != IGNORED]) == "say<|end|>\n" + ("no" * 20)[:reach]


@pytest.mark.parametrize(("name", "data"), [("sums", None), ("text", {"train": "ab", "test": "cd"})])
def test_a_tokenizer_without_an_end_of_text_is_one_sentence(name, data, llama, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    task = load_task(name, path=data and write(tmp_path, **data))
    with pytest.raises(DataError, match="no token that ends a text: name one, eos_token"):
        task.objective.examples(task.train, replace(llama, tokenizer=tokenizer))


def test_nothing_is_labelled_before_a_text():
    tokens = {"": [1], "ab": [5, 6]}
    tokenizer = lambda text, add_special_tokens=True: {"input_ids": tokens[text]}  # noqa: E731
    ids, labels = tokens_of([Piece("ab", True)], tokenizer)
    assert (ids.tolist(), labels.tolist()) == ([1, 5, 6], [IGNORED, 5, 6])
    assert tokens_of([Piece("ab", True)], tokenizer, begins=False)[1].tolist() == [IGNORED, 6]


BAD = {
    "no folder": ("text", None, "is no folder"),
    "no file": ("text", {}, "holds no file that ends in .txt, .md, .jsonl"),
    "one split": ("text", {"train": "a"}, "has train.txt but no test"),
    "no text": ("text", {"train": "a", "test": ""}, "test.txt holds no text"),
    "one document": ("text", {"mine": "a"}, "holds one document"),
    "no JSON": ("text", {"mine": ['{"text": "a"}', "{"]}, "mine.jsonl, line 2, is no JSON"),
    "other key": ("text", {"mine": [{"content": "a"}]}, "line 1, has no text"),
    "no object": ("instruct", {"mine": ["[1]"]}, "line 1, holds list"),
    "no messages": ("instruct", {"mine": [chat("a", "b"), {"text": "a"}]}, "line 2, is no conversation"),
    "other role": (
        "instruct",
        {"mine": [{"messages": [{"role": "bot", "content": "a"}]}]},
        "line 1, is no conversation",
    ),
    "no answer": ("instruct", {"mine": [chat("a")]}, "line 1, has no answer"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_are_one_sentence_before_a_model_loads(fault, tmp_path):
    name, files, sentence = BAD[fault]
    path = str(tmp_path / "absent") if files is None else write(tmp_path / "data", **files)
    for read in (check_data, data_hash, load_task):
        with pytest.raises(DataError, match=re.escape(sentence)) as raised:
            read(name, path=path)
        assert "\n" not in str(raised.value)


def test_what_a_model_cannot_read_is_one_sentence(llama, tmp_path):
    path = write(tmp_path, train="a" * 600, test="b" * 600)
    task = load_task("text", path=path, options={"block_size": 400})
    with pytest.raises(DataError, match="400 tokens, but the model reads at most 256"):
        task.objective.examples(task.train, llama)
    path = write(tmp_path / "chats", train=[chat("a" * 50, "b"), chat("a", "b")], test=[chat("a", "b")])
    task = load_task("instruct", path=path, options={"block_size": 20})
    with pytest.raises(DataError, match=r"begins with 'a{40}' has no answer within its first 20 tokens"):
        task.objective.examples(task.train, llama)


def test_options_of_data_are_checked():
    assert data_options("uuid") == {"pairs": 100}
    with pytest.raises(DataError, match=r"dataset\.pairs=5 is for dataset=uuid, not digits"):
        data_options("digits", {"pairs": 5})
    with pytest.raises(DataError, match=r"dataset\.pairs=1: give a whole number of at least 2"):
        data_options("uuid", {"pairs": 1})
