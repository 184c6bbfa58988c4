"""What fails before the first step, wherever it fails: one sentence, exit code 1, and nothing is written."""

import csv
import json
import pickle
import re
import struct
import zipfile
import zlib
from dataclasses import replace
from itertools import product

import pytest
import torch
from PIL import Image
from pyarrow.lib import ArrowException
from safetensors import SafetensorError

from surm.config.run import Run
from surm.data import labels
from surm.experiments import runner
from surm.experiments.cli import command
from surm.experiments.plan import TrainingRun
from surm.methods.registry import AnyMethodConfig
from surm.shared.errors import ConfigError, DataError, ModelError, RunError, UserError
from surm.training import loop, run, setup
from surm.training.run import execute
from tests.tools.runs import configure, quiet

PLACES = {  # steps of the set-up, in their order
    "hash of the data": (run, "data_hash"),
    "hash of the weights": (run, "weights_hash"),
    "data": (setup, "load_task"),
    "method": (setup, "make_method"),
    "model": (setup, "load_backbone"),
    "encoding": (labels, "encode"),
    "optimiser": (setup, "parameter_groups"),
    "order": (setup, "EpochBatches"),
    "outcome": (loop, "Outcome"),
}
ERRORS = [  # of Python, of libraries, of formats of files, and such as are no subclass of any common one
    *(kind("a cell is broken.\nand more lines") for kind in (ValueError, TypeError, KeyError, IndexError, LookupError)),
    *(kind("broken:") for kind in (RuntimeError, NotImplementedError, RecursionError, AttributeError, AssertionError)),
    *(kind() for kind in (ZeroDivisionError, OverflowError, MemoryError, EOFError, StopIteration, Exception)),
    *(kind("x" * 5000) for kind in (ImportError, PermissionError, FileNotFoundError, BrokenPipeError)),
    *(csv.Error("line 3"), pickle.UnpicklingError("stack underflow"), struct.error("4 bytes"), zlib.error("Error -3")),
    *(zipfile.BadZipFile("no zip"), Image.DecompressionBombError("195000000 pixels"), ArrowException("page 3")),
    *(SafetensorError("header too large"), json.JSONDecodeError("no JSON", "x", 0), Image.UnidentifiedImageError("?")),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
]


def failing(error):
    def fail(*_args, **_options):
        raise error

    return fail


@pytest.mark.sample(12)
@pytest.mark.parametrize(
    ("place", "error"),
    list(product(PLACES, ERRORS)),
    ids=lambda value: value if isinstance(value, str) else repr(value)[:30],
)
def test_whatever_a_step_raises_is_one_sentence(place, error, tmp_path, monkeypatch, capsys) -> None:
    asked = configure(tmp_path / "outputs")
    monkeypatch.setattr(*PLACES[place], failing(error))
    with pytest.raises(SystemExit) as ended, command():
        execute(asked, say=quiet)
    said = str(ended.value.code)  # a text is shown on stderr, with exit code 1
    assert said.startswith("Error: ")
    assert said.endswith(".")
    assert "\n" not in said
    assert len(said) < 700
    assert type(error).__name__ in said or "structure=circulant on model=tiny_vit" in said
    assert "tiny_vit" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(4)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [DataError("Row 3."), ModelError("No layers."), ConfigError("x=1: no.")], ids=repr)
def test_a_sentence_stays_as_it_is(place, error, tmp_path, monkeypatch) -> None:
    asked = configure(tmp_path / "outputs")
    monkeypatch.setattr(*PLACES[place], failing(error))
    with pytest.raises(type(error)) as raised:
        execute(asked, say=quiet)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["structure=hadamard", "structure.layers=3"], "layers=3 is not possible: the model has 2 blocks"),
        (["structure=aurora", "placement=weight_all_linear"], "aurora shares its factors among matrices of one size"),
        (["structure=aurora", "structure.gate=true"], "gate=True needs blocks as those of BERT"),
        (["structure=lorta", "placement=weight_all_linear"], "give heads='output' or 'input'"),
        (["structure=lorta", "structure.num_heads=5"], "5 heads do not divide the width 48"),
        (["structure=adalora", "trainer.max_steps=1"], "1 steps leave none between 0.15 and 0.5 of them"),
        (
            ["structure=adapter_drop", "structure.dropped_layers=2", "placement=adapter_houlsby"],
            "leaves no adapter in 2",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_a_method_that_does_not_fit_is_refused_before_any_weights(options, words, tmp_path, monkeypatch) -> None:
    asked = configure(tmp_path / "outputs", *options)
    monkeypatch.setattr(run, "weights_hash", failing(AssertionError("the weights were read")))
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        execute(asked, say=quiet)
    assert "\n" not in str(raised.value)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []


def test_a_device_without_room_for_the_model_names_the_setting(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(setup, "load_backbone", failing(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(RunError, match="batch_size"):
        execute(configure(tmp_path / "outputs"), say=quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_goes_on_after_a_run_whose_set_up_fails(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(setup, "load_task", failing(Exception("a tokenizer of another version")))
    assert runner.attempt(TrainingRun.of(configure(tmp_path / "outputs").config)) is None
    assert "a tokenizer of another version" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("peft_vera", {"r": value}) for value in (-1, 0, 1.5, "x", None, [2])),
        *(("peft_lora", {"r": value}) for value in (-1, 0, 1.5, "x")),
        *(("peft_adalora", {"init_r": value}) for value in (-1, "x")),
        *(("peft_c3a", {"block_size": value}) for value in (0, 5, "x")),
        *(("peft_hra", {"r": value}) for value in (-1, "x")),
        *(("peft_loha", {"r": value}) for value in (-1, "x")),
    ],
)
def test_what_peft_refuses_of_a_model_is_one_sentence(name: str, arguments: dict, tmp_path) -> None:
    config = configure(tmp_path / "outputs", "trainer.max_steps=1", "optim.lr=0.001").config
    config = replace(config, structure=AnyMethodConfig(name=name, arguments=arguments))
    with pytest.raises(UserError) as refused:
        execute(Run(config), say=quiet)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")
    assert list(tmp_path.iterdir()) == []
