"""Stopped and killed runs go on from their checkpoint, bit for bit."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from surm.config.run import Run
from surm.data import load_task
from surm.models import load_backbone
from surm.records.record import read_record
from surm.shared.errors import Interrupted, RecordError
from surm.training.run import execute
from tests.data.hub_layout import write_tiny
from tests.tools.runs import REPOSITORY, SMALL, configure, quiet, stop_after


@pytest.mark.parametrize(
    "step", [1, 5, 16, 23]
)  # before a checkpoint was due, at one, at the end of an epoch, before the last
@pytest.mark.parametrize("structure", ["circulant", "full"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, step: int, structure: str) -> None:
    options = [f"structure={structure}", "trainer.gradient_accumulation=2", "trainer.batch_size=32"]
    whole = execute(configure(tmp_path / "whole", *options), say=quiet)
    config = configure(tmp_path / "parts", *options)
    folder = tmp_path / "parts" / "runs" / whole.signature
    with pytest.raises(Interrupted, match=f"step {step} of 24"):
        execute(config, report=stop_after(step), say=quiet)
    left = read_record(folder / "record.json")
    assert left is not None
    assert left.status == "interrupted"
    assert left.happened["steps"] == step

    resumed = execute(config, say=quiet)
    assert resumed.happened["resumed_from_steps"] == [step]
    for key in ("metrics", "best_epoch_metrics", "history"):
        assert resumed.happened[key] == whole.happened[key]
    name = "trained.safetensors" if structure == "full" else "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "whole" / "runs" / whole.signature / name).read_bytes()


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "options",
    [["melora"], ["lora_mini"], ["lora_xs"], ["aurora"], ["lorta"], ["hadamard", "structure.head_first=0.5"]],
    ids=lambda options: options[0],
)
@pytest.mark.parametrize("model", [["model=tiny_vit"], ["model=tiny_bert", "dataset=valence"]], ids=["vit", "bert"])
def test_frozen_and_shared_tensors_and_two_stages_go_on_bit_for_bit(
    tmp_path: Path, options: list[str], model: list[str]
) -> None:
    name, *rest = options
    settings = [
        f"structure={name}",
        *rest,
        *model,
        "trainer.max_steps=6",
        "trainer.batch_size=16",
        "trainer.checkpoint_every=1",
    ]
    whole = execute(configure(tmp_path / "whole", *settings), say=quiet)
    run = configure(tmp_path / "parts", *settings)
    for step in (2, 4):  # in both stages
        with pytest.raises(Interrupted):
            execute(run, report=stop_after(step), say=quiet)
    resumed = execute(run, say=quiet)
    assert resumed.happened["resumed_from_steps"] == [2, 4]
    assert resumed.happened["history"] == whole.happened["history"]
    folders = (tmp_path / part / "runs" / whole.signature / "adapter" for part in ("whole", "parts"))
    one, other = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == other


def test_a_signal_in_the_last_step_finishes_the_run_and_stops_the_sweep(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with pytest.raises(Interrupted, match="is finished; nothing after it was started"):
        execute(config, report=stop_after(24), say=quiet)
    record = read_record(tmp_path / "runs" / config.signature / "record.json")
    assert record is not None
    assert record.status == "finished"
    assert execute(config, say=quiet) == record


def test_random_numbers_of_dropout_are_resumed_too(tmp_path: Path) -> None:
    options = ["structure.dropout=0.5", "structure.alpha=3"]
    whole = execute(configure(tmp_path / "whole", *options), say=quiet)
    config = configure(tmp_path / "parts", *options)
    with pytest.raises(Interrupted):
        execute(config, report=stop_after(7), say=quiet)
    assert execute(config, say=quiet).happened["history"] == whole.happened["history"]


def test_adalora_goes_on_bit_for_bit_in_every_part_of_its_schedule(tmp_path: Path) -> None:
    """Of 24 steps the budget is whole to the second, falls every other step to the 16th, and is final from the 17th."""
    options = ["structure=peft_adalora", "structure.arguments.deltaT=2", "structure.arguments.init_r=4"]
    whole = execute(configure(tmp_path / "whole", *options), say=quiet)
    run = configure(tmp_path / "parts", *options)
    stops = [1, 2, 3, 4, 11, 15, 16, 17, 18, 23]
    for step in stops:
        with pytest.raises(Interrupted):
            execute(run, report=stop_after(step), say=quiet)
    resumed = execute(run, say=quiet)
    assert resumed.happened["resumed_from_steps"] == stops
    for key in ("metrics", "best_epoch_metrics", "history", "trainable_parameters"):
        assert resumed.happened[key] == whole.happened[key]
    folders = [tmp_path / name / "runs" / whole.signature / "adapter" for name in ("whole", "parts")]
    one, other = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == other
    patterns = [json.loads((folder / "adapter_config.json").read_text())["rank_pattern"] for folder in folders]
    assert patterns[0] == patterns[1]
    left = [sum(kept) for kept in patterns[0].values()]
    assert sum(left) == len(left) < 4 * len(left)  # target_r is 1 on average


@pytest.mark.sample(1)
@pytest.mark.parametrize("structure", ["adalora", "dynamic_dora", "lora2"])
def test_an_allocator_goes_on_bit_for_bit(tmp_path: Path, structure: str) -> None:
    """Of 12 steps it chooses from the second to the sixth; what it leaves alone is saved."""
    options = [f"structure={structure}", "structure.rank=3", "structure.target_rank=1", "trainer.max_steps=12"]
    options += ["trainer.batch_size=8"]
    whole = execute(configure(tmp_path / "whole", *options), say=quiet)
    run = configure(tmp_path / "parts", *options)
    stops = [4, 8]  # while it chooses, and once the choice is final
    for step in stops:
        with pytest.raises(Interrupted):
            execute(run, report=stop_after(step), say=quiet)
    resumed = execute(run, say=quiet)
    assert resumed.happened["resumed_from_steps"] == stops
    for key in ("metrics", "best_epoch_metrics", "history", "trainable_parameters", "peak_trainable_parameters"):
        assert resumed.happened[key] == whole.happened[key]
    folders = [tmp_path / name / "runs" / whole.signature / "adapter" for name in ("whole", "parts")]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = ((folder / name).read_bytes() for folder in folders)
        assert one == other
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    gates = [tensor for name, tensor in tensors.items() if name.endswith(".c")]
    assert sum(map(len, gates)) == 6  # of two layers with three matrices each
    assert all((gate != 0).all() for gate in gates)
    counted = sum(tensor.numel() for name, tensor in tensors.items() if "surm_" in name)
    assert counted == whole.happened["trainable_parameters"] < whole.happened["peak_trainable_parameters"]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "options",
    [
        ["structure=compacter", "placement=adapter_houlsby"],
        ["structure=adapter_drop", "structure.dropped_layers=1", "placement=adapter_houlsby"],
        ["structure=prefix_tuning", "model=tiny_bert", "dataset=glue/mrpc"],
        ["structure=prefix_tuning", "model=tiny_llama", "dataset=uuid", "dataset.pairs=8"],
        ["structure=circulant", "model=tiny_sam", "dataset=phantoms", "placement=weight_qv"],
    ],
    ids=lambda options: " ".join(options[:2]),
)
def test_adapters_and_tasks_of_each_kind_go_on_bit_for_bit_and_load_in_plain_peft(
    tmp_path: Path, options: list[str]
) -> None:
    if "dataset=glue/mrpc" in options:
        options = [*options, f"dataset.path={write_tiny('glue/mrpc', tmp_path)}"]
    options = [*options, "trainer.batch_size=4", "trainer.max_steps=6"]
    whole = execute(configure(tmp_path / "whole", *options), say=quiet)
    run = configure(tmp_path / "parts", *options)
    with pytest.raises(Interrupted):
        execute(run, report=stop_after(2), say=quiet)
    resumed = execute(run, say=quiet)
    assert resumed.happened["resumed_from_steps"] == [2]
    assert resumed.happened["history"] == whole.happened["history"]
    folders = [tmp_path / name / "runs" / whole.signature for name in ("whole", "parts")]
    one, other = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == other

    data = run.config.dataset
    task = load_task(data.name, **data.origin())
    objective, name = task.objective, run.config.model.name
    backbone = load_backbone(name, num_labels=task.num_labels, predicts=objective.predicts)
    model = PeftModel.from_pretrained(backbone.module, folders[0] / "adapter").eval()
    examples = objective.examples(task.evaluation, backbone)
    batch = examples.finish(examples.collate([examples.unfinished[index] for index in range(len(examples))]))
    with torch.no_grad():
        found = objective.score(objective.answer(model, batch))
    stored = json.loads((folders[0] / "predictions.json").read_text())
    np.testing.assert_allclose(found.predictions, stored["predictions"], atol=1e-6)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with pytest.raises(Interrupted):
        execute(config, report=stop_after(3), say=quiet)
    checkpoint = tmp_path / "runs" / config.signature / "checkpoint.safetensors"
    half = checkpoint.read_bytes()[:1000]
    checkpoint.write_bytes(half)
    with pytest.raises(RecordError, match=r"checkpoint\.safetensors is not a whole checkpoint"):
        execute(config, say=quiet)
    assert checkpoint.read_bytes() == half


def start(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *SMALL, f"output_dir={folder}", *overrides]
    return subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


LONG = ["structure=full", "trainer.max_steps=400", "trainer.epochs=30", "trainer.checkpoint_every=4"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["early", "late", "while a checkpoint is written"])
def test_kill_9_loses_nothing_but_the_steps_since_the_checkpoint(tmp_path: Path, moment: str) -> None:
    config = configure(tmp_path / "whole", *LONG)
    whole = execute(config, say=quiet)
    folder = tmp_path / "killed" / "runs" / whole.signature
    process = start(tmp_path / "killed", *LONG)
    deadline = time.monotonic() + 300
    written = 0
    while time.monotonic() < deadline and process.poll() is None:
        temporary = list(folder.glob(".checkpoint*.tmp"))
        written += (folder / "checkpoint.safetensors").exists()
        if (moment == "early" and written) or (moment == "late" and _step(folder) > 250):
            break
        if moment.startswith("while") and temporary and _step(folder) > 180:
            break
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "record.json").exists()

    resumed = execute(Run(replace(config.config, output_dir=str(tmp_path / "killed"))), say=quiet)
    assert resumed.happened["metrics"] == whole.happened["metrics"]
    assert resumed.happened["history"] == whole.happened["history"]
    assert resumed.happened["resumed_from_steps"][0] > 0
    if moment != "early":
        assert 400 - resumed.happened["resumed_from_steps"][0] < 0.6 * 400


NINE = ("melora", "hadamard", "lora_mini", "lora_xs", "dynamic_dora", "adalora", "lora2", "aurora", "lorta")
PEFTS_ADALORA = ["structure=peft_adalora", "structure.arguments.deltaT=4", "structure.arguments.init_r=4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "moment"),
    [
        # Of 120 steps the budget of PEFT's falls from the 13th, and is final from the 81st.
        pytest.param(PEFTS_ADALORA, 30, id="peft_adalora while it chooses"),
        pytest.param(PEFTS_ADALORA, 84, id="peft_adalora once it has chosen"),
        # Here it falls from the 18th to the 60th; the Hadamard adapter's head is alone for 24.
        *(pytest.param([f"structure={name}", "model=tiny_bert", "dataset=valence"], 30, id=name) for name in NINE),
    ],
)
def test_kill_9_moves_no_digit(tmp_path: Path, options: list[str], moment: int) -> None:
    options = [*options, "trainer.max_steps=120", "trainer.epochs=30", "trainer.checkpoint_every=3"]
    run = configure(tmp_path / "whole", *options)
    whole = execute(run, say=quiet)
    folder = tmp_path / "killed" / "runs" / whole.signature
    process = start(tmp_path / "killed", *options)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and _step(folder) < moment:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "record.json").exists()

    resumed = execute(Run(replace(run.config, output_dir=str(tmp_path / "killed"))), say=quiet)
    assert resumed.happened["resumed_from_steps"][0] >= moment
    assert resumed.happened["metrics"] == whole.happened["metrics"]
    assert resumed.happened["history"] == whole.happened["history"]
    adapters = [tmp_path / part / "runs" / whole.signature / "adapter" for part in ("whole", "killed")]
    one, other = ((adapter / "adapter_model.safetensors").read_bytes() for adapter in adapters)
    assert one == other


def _step(folder: Path) -> int:
    """The step of the checkpoint, from the file's own header."""
    try:
        with (folder / "checkpoint.safetensors").open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return int(json.loads(header["__metadata__"]["progress"])["step"])
    except (FileNotFoundError, json.JSONDecodeError):
        return 0
