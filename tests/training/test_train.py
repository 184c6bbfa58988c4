"""The loop: exact resume, honest records, artefacts that load elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score

from surm.config.schema import RunConfig
from surm.data import load_task
from surm.data.encode import encode
from surm.data.order import EpochBatches
from surm.models import load_backbone
from surm.records.claim import Claim
from surm.records.record import read_record
from surm.shared.errors import ConfigError, RecordError, RunError
from surm.training import loop as train
from surm.training import setup
from surm.training.device import accelerator
from surm.training.run import execute
from tests.data.hub_layout import write_tiny
from tests.tools.runs import configure, quiet


def test_batches_cover_each_epoch_once_in_an_order_of_seed_and_epoch() -> None:
    batches = EpochBatches(10, 4, seed=3)
    first = list(batches)
    assert sorted(index for batch in first for index in batch) == list(range(10))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert list(batches) == first
    batches.start = 1
    assert list(batches) == first[1:]
    batches.start, batches.epoch = 0, 1
    assert list(batches) != first
    assert list(EpochBatches(10, 4, seed=4)) != first


def test_a_run_leaves_a_whole_record_and_is_answered_once(tmp_path: Path) -> None:
    config = configure(tmp_path)
    record = execute(config, say=quiet)
    folder = tmp_path / "runs" / config.signature
    assert read_record(folder / "record.json") == record
    assert record.status == "finished"
    assert record.happened["steps"] == 24
    assert record.happened["evaluation_examples"] == 797
    by_epoch = record.happened["seconds_per_step_by_epoch"]  # of 16 steps, then 8
    assert len(by_epoch) == 2
    assert all(0 < 8 * seconds < record.happened["seconds"] for seconds in by_epoch)
    assert record.happened["peak_memory_bytes"] > 4 * record.happened["total_parameters"]
    assert not (folder / "checkpoint.safetensors").exists()
    assert not (folder / "claim.json").exists()

    stored = json.loads((folder / "predictions.json").read_text())
    labels = load_task("digits").evaluation.labels
    assert stored["labels"] == labels.tolist()
    assert record.happened["metrics"]["accuracy"] == accuracy_score(labels, stored["predictions"])
    assert record.evaluation is not None
    assert record.evaluation.losses is not None
    last = record.happened["history"][-1]["evaluation"]["loss"]
    assert np.mean(record.evaluation.losses) == pytest.approx(last, abs=1e-4)

    said: list[str] = []
    assert execute(config, say=said.append) == record
    assert "finished already" in said[0]


def test_the_saved_adapter_gives_the_recorded_predictions_in_plain_peft(tmp_path: Path) -> None:
    config = configure(tmp_path)
    execute(config, say=quiet)
    folder = tmp_path / "runs" / config.signature
    task = load_task("digits")
    torch.manual_seed(99)
    backbone = load_backbone("tiny_vit", num_labels=task.num_labels)
    model = PeftModel.from_pretrained(backbone.module, folder / "adapter").eval()
    split = encode(task.evaluation, backbone)
    with torch.no_grad():
        logits = model(torch.stack([split[i]["x"] for i in range(len(split))]))
    assert logits.argmax(-1).tolist() == json.loads((folder / "predictions.json").read_text())["predictions"]


def on_rows(folder: Path, name: str, *overrides: str) -> RunConfig:
    """A tiny run on a handful of rows in the hub's layout, by `dataset.path` alone."""
    path = write_tiny(name, folder / "data")
    model = "tiny_bert" if name.startswith("glue/") else "tiny_vit"
    return configure(folder, f"model={model}", f"dataset={name}", f"dataset.path={path}", *overrides)


SHORT = ["trainer.max_steps=4", "trainer.batch_size=4"]


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("glue/mrpc", {"f1", "accuracy"}),
        ("glue/stsb", {"spearman", "pearson"}),
        ("glue/cola", {"matthews", "accuracy"}),
        ("glue/mnli", {"accuracy", "accuracy (mismatched)"}),
    ],
)
@pytest.mark.parametrize("placement", ["weight_qkv", "adapter_houlsby"])
def test_glue_runs_by_its_path_alone(tmp_path: Path, name: str, metrics: set[str], placement: str) -> None:
    record = execute(on_rows(tmp_path, name, f"placement={placement}", *SHORT), say=quiet)
    assert set(record.happened["metrics"]) == metrics
    assert str(tmp_path) not in record.path.read_text()  # a record holds no path of one machine


@pytest.mark.parametrize(
    "name", ["cifar10", "vtab/pets", "image_folder", "table"]
)  # parquet, lists, folders of a class each, a table
def test_images_and_a_user_s_own_data_run_by_their_path_alone(tmp_path: Path, name: str) -> None:
    overrides = ["model=tiny_bert", "dataset.columns.text=text"] if name == "table" else []
    record = execute(on_rows(tmp_path, name, *overrides, *SHORT), say=quiet)
    assert "accuracy" in record.happened["metrics"]
    again: list[str] = []
    assert execute(on_rows(tmp_path, name, *overrides, *SHORT), say=again.append) == record
    assert "finished already" in again[0]


def test_a_model_of_one_s_own_runs_by_its_path_alone(tmp_path: Path) -> None:
    backbone = load_backbone("tiny_bert", num_labels=2)
    backbone.module.save_pretrained(tmp_path / "mine")
    backbone.tokenizer.save_pretrained(tmp_path / "mine")
    own = ["model.source=local", "model.name=mine", f"model.path={tmp_path / 'mine'}", "dataset=valence", *SHORT]
    record = execute(configure(tmp_path, "model=tiny_bert", *own), say=quiet)
    same = execute(configure(tmp_path, "model=tiny_bert", "dataset=valence", *SHORT), say=quiet)
    assert record.asked["model"] == {"name": "mine", "source": "local", "revision": "main"}
    assert record.signature != same.signature
    assert record.happened["history"] == same.happened["history"]  # the same weights, the same head


def test_a_regression_s_predictions_are_values_and_its_metrics_are_scipy_s(tmp_path: Path) -> None:
    config = on_rows(tmp_path, "glue/stsb", *SHORT)
    record = execute(config, say=quiet)
    stored = json.loads((tmp_path / "runs" / record.signature / "predictions.json").read_text())
    assert any(value != int(value) for value in stored["predictions"])
    expected = spearmanr(stored["labels"], stored["predictions"]).statistic
    assert record.happened["metrics"]["spearman"] == pytest.approx(expected)
    loss = np.mean((np.array(stored["labels"]) - np.array(stored["predictions"])) ** 2)
    assert record.happened["best_epoch_metrics"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_saved_adapter_form_gives_the_recorded_predictions_in_plain_peft(tmp_path: Path) -> None:
    record = execute(configure(tmp_path, "placement=adapter_houlsby"), say=quiet)
    folder = tmp_path / "runs" / record.signature
    backbone = load_backbone("tiny_vit", num_labels=10)
    model = PeftModel.from_pretrained(backbone.module, folder / "adapter").eval()
    split = encode(load_task("digits").evaluation, backbone)
    with torch.no_grad():
        logits = model(torch.stack([split[i]["x"] for i in range(len(split))]))
    assert logits.argmax(-1).tolist() == json.loads((folder / "predictions.json").read_text())["predictions"]


@pytest.mark.parametrize("model", ["tiny_vit", "tiny_bert"])
@pytest.mark.parametrize("structure", ["circulant", "full"])
def test_gradient_checkpointing_moves_no_number(tmp_path: Path, model: str, structure: str) -> None:
    data = "dataset=digits" if model == "tiny_vit" else "dataset=valence"
    options = [f"model={model}", data, f"structure={structure}", *SHORT]
    plain = execute(configure(tmp_path / "plain", *options, "trainer.batch_size=64"), say=quiet)
    less = execute(
        configure(tmp_path / "less", *options, "trainer.batch_size=64", "trainer.gradient_checkpointing=true"),
        say=quiet,
    )
    assert less.signature == plain.signature
    assert less.happened["history"] == plain.happened["history"]
    assert less.happened["peak_memory_bytes"] < plain.happened["peak_memory_bytes"]


def test_worker_processes_move_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = execute(configure(tmp_path / "plain", *SHORT), say=quiet)
    started: list[int] = []
    iterate = setup.DataLoader._get_iterator
    monkeypatch.setattr(
        setup.DataLoader, "_get_iterator", lambda self: started.append(self.num_workers) or iterate(self)
    )
    with_workers = execute(configure(tmp_path / "workers", *SHORT, "trainer.workers=2"), say=quiet)
    assert set(started) == {2}
    assert with_workers.happened["history"] == plain.happened["history"]


@pytest.mark.slow
def test_a_compiled_run_finds_the_same_up_to_rounding(tmp_path: Path) -> None:
    plain = execute(configure(tmp_path / "plain", *SHORT, "trainer.log_every=1"), say=quiet)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = execute(
        configure(tmp_path / "compiled", *SHORT, "trainer.log_every=1", "trainer.compile=true"), say=quiet
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    losses = [[row["loss"] for row in record.happened["history"] if "loss" in row] for record in (plain, compiled)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert (tmp_path / "compiled" / "runs" / compiled.signature / "adapter").exists()


def test_out_of_memory_is_recorded_and_says_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: train.Loop, batch: dict[str, Any], number: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train.Loop, "_loss", no_memory)
    config = configure(tmp_path)
    with pytest.raises(RunError, match=r"out of memory at trainer\.batch_size=64: halve it"):
        execute(config, say=quiet)
    record = read_record(tmp_path / "runs" / config.signature / "record.json")
    assert record is not None
    assert record.status == "failed"
    assert "trainer.gradient_checkpointing=true" in record.happened["error"]


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    other = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"device={other}: this machine offers"):
        execute(configure(tmp_path, f"device={other}"), say=quiet)


def test_a_fraction_trains_on_less_and_is_another_run(tmp_path: Path) -> None:
    options = ["trainer.max_steps=null", "trainer.epochs=1", "trainer.batch_size=10"]
    record = execute(configure(tmp_path, *options, "dataset.fraction=0.05"), say=quiet)
    assert record.happened["steps"] == 5  # 5 % of 1,000 images in tens
    assert record.asked["dataset"]["fraction"] == 0.05
    assert "fraction" not in configure(tmp_path, *options).asked["dataset"]


def test_other_data_than_the_finished_run_saw_is_refused_with_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path)
    record = execute(config, say=quiet)
    monkeypatch.setattr("surm.training.run.data_hash", lambda name, **origin: "0123456789abcdef" * 4)
    with pytest.raises(RecordError) as caught:
        execute(config, say=quiet)
    assert "0123456789abcdef" in str(caught.value)
    assert record.where["content_hashes"]["data"][:16] in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_reason(tmp_path: Path) -> None:
    config = configure(tmp_path, "structure=full", "optim.lr=1e30", "optim.max_grad_norm=null", "optim.warmup_ratio=0")
    with pytest.raises(RunError, match=r"lower optim\.lr=1e\+30"):
        execute(config, say=quiet)
    record = read_record(tmp_path / "runs" / config.signature / "record.json")
    assert record is not None
    assert record.status == "failed"
    assert "lower optim.lr" in record.happened["error"]
    assert record.happened["steps"] < 24


def test_precision_may_change_between_the_runs_of_a_process(tmp_path: Path) -> None:
    def loss(precision: str) -> float:
        config = configure(tmp_path / precision, f"trainer.precision={precision}", "trainer.max_steps=2")
        return execute(config, say=quiet).happened["history"][-1]["evaluation"]["loss"]

    single, half = loss("no"), loss("bf16")
    assert half == pytest.approx(single, rel=0.01)
    assert half != single


def rates(tmp_path: Path, *overrides: str) -> list[float]:
    config = configure(
        tmp_path, "trainer.log_every=1", "optim.lr=1", "optim.warmup_ratio=0.25", "structure=linear_probe", *overrides
    )
    history = execute(config, say=quiet).happened["history"]
    return [row["lr"] for row in history if "lr" in row]


def test_the_schedule_warms_up_linearly_and_falls_to_zero(tmp_path: Path) -> None:
    linear = rates(tmp_path, "optim.schedule=linear")
    np.testing.assert_allclose(linear, [*np.arange(1, 7) / 6, *(1 - np.arange(18) / 18)])
    cosine = rates(tmp_path, "optim.schedule=cosine")
    np.testing.assert_allclose(cosine[6:], 0.5 + 0.5 * np.cos(np.pi * np.arange(18) / 18))


def test_weight_decay_leaves_structure_parameters_alone_by_default(tmp_path: Path) -> None:
    def decayed(*overrides: str) -> int:
        config = configure(tmp_path, *overrides)
        loop = train.Loop(config, accelerator(config.config), Claim(tmp_path), None, quiet)
        groups = loop.optimizer.param_groups
        return sum(p.numel() for group in groups if group["weight_decay"] > 0 for p in group["params"])

    head = 48 * 10
    assert decayed() == head
    assert decayed("optim.decay_structure=true") == head + 2 * 3 * 2 * 48  # layers, parts, vectors, width
