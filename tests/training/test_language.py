"""Runs of a language model: what is trained, exact resume, and that ways to save memory move no number."""

from pathlib import Path

import pytest
import torch

from surm.config.run import Run
from surm.shared.errors import ConfigError, Interrupted
from surm.training.run import execute
from tests.tools.runs import configure, quiet, stop_after

SHORT = ("model=tiny_llama", "dataset=uuid", "dataset.pairs=18", "placement=weight_qkvo", "optim.lr=0.01")
SHORT += ("trainer.max_steps=6", "trainer.batch_size=8", "trainer.log_every=1", "trainer.checkpoint_every=4")
SHORT += ("trainer.epochs=1",)  # what is memorised is seen as often as max_steps take


def asked(folder: Path, *overrides: str) -> Run:
    return configure(folder, *SHORT, *overrides)


def test_a_stopped_run_goes_on_bit_for_bit_and_its_head_is_the_model_s(tmp_path: Path) -> None:
    whole = execute(asked(tmp_path / "whole"), say=quiet)
    config = asked(tmp_path / "parts")
    with pytest.raises(Interrupted):
        execute(config, report=stop_after(3), say=quiet)
    resumed = execute(config, say=quiet)
    for key in ("metrics", "best_epoch_metrics", "history"):
        assert resumed.happened[key] == whole.happened[key]
    happened = whole.happened
    assert happened["steps"] == 6
    assert (happened["head_parameters"], happened["evaluation_examples"]) == (0, 18)
    # 2 layers; circulant: q and o are 32 x 32, k and v 16 x 32, each of two vectors of 32 numbers
    assert happened["trainable_parameters"] == 2 * 4 * 2 * 32
    assert set(happened["metrics"]) == {"exact_match", "token_accuracy", "perplexity"}
    assert happened["primary_metric"] == "exact_match"
    losses = [row["loss"] for row in happened["history"] if "loss" in row]
    assert losses[-1] < losses[0]
    evaluation = whole.evaluation
    assert evaluation is not None
    right, tokens = evaluation.predictions, evaluation.labels
    assert happened["metrics"]["token_accuracy"] == pytest.approx(right.sum() / tokens.sum())
    assert happened["metrics"]["exact_match"] == (right == tokens).mean()


@pytest.mark.parametrize(
    ("structure", "less"),
    [
        # A batch of all pairs, so that the parts of it hold the same ones in whatever order.
        ("lora", ("dataset.pairs=8", "trainer.batch_size=4", "trainer.gradient_accumulation=2")),
        ("full", ("trainer.gradient_checkpointing=true",)),
    ],
)
def test_what_saves_memory_moves_no_number(tmp_path: Path, structure: str, less: tuple[str, ...]) -> None:
    same = [setting for setting in less if "pairs" in setting]
    one, other = (
        execute(asked(tmp_path / name, f"structure={structure}", *more), say=quiet).happened["history"]
        for name, more in (("plain", same), ("less", less))
    )
    found, expected = ([row["loss"] for row in rows if "loss" in row] for rows in (other, one))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_compiled_run_finds_the_same_up_to_rounding(tmp_path: Path) -> None:
    """Of batches of several lengths; the module is compiled, and hands on what is before its output layer."""
    sums = ("dataset=sums", "dataset.pairs=null", "dataset.fraction=0.005", "trainer.eval_batch_size=500")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    one, other = (
        execute(asked(tmp_path / name, *sums, *more), say=quiet).happened
        for name, more in (("plain", ()), ("compiled", ("trainer.compile=true",)))
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    found, expected = ([row["loss"] for row in of["history"] if "loss" in row] for of in (other, one))
    assert found == pytest.approx(expected, rel=1e-4)
    assert other["metrics"]["perplexity"] == pytest.approx(one["metrics"]["perplexity"], rel=1e-3)


def test_bf16_trains(tmp_path: Path) -> None:
    record = execute(asked(tmp_path, "trainer.precision=bf16", "trainer.max_steps=2"), say=quiet)
    assert record.finished


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("structure=linear_probe",), "a language model has no new head to train"),
        (("dataset=valence", "dataset.pairs=null"), "the model predicts tokens, the dataset asks for labels"),
        (("model=tiny_bert",), "the model predicts labels, the dataset asks for tokens"),
        (("dataset=sums",), r"dataset\.pairs=18 is for dataset=uuid, not sums"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        asked(tmp_path, *overrides)


@pytest.mark.parametrize("structure", ["bitfit", "layernorm_tuning"])
def test_a_method_that_finds_nothing_to_train_is_one_sentence(tmp_path: Path, structure: str) -> None:
    sentence = f"structure={structure} on model=tiny_llama: LlamaForCausalLM has no parameter that {structure} trains"
    with pytest.raises(ConfigError, match=sentence):
        execute(asked(tmp_path, f"structure={structure}"), say=quiet)
    assert not list(tmp_path.iterdir())


def test_pairs_are_part_of_a_run_s_identity(tmp_path: Path) -> None:
    few, usual, default = (asked(tmp_path, f"dataset.pairs={pairs}") for pairs in (5, 100, "null"))
    assert few.asked["dataset"] == {"name": "uuid", "revision": "1", "evaluate_on": "test", "pairs": 5}
    assert few.signature != usual.signature == default.signature
