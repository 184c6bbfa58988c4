"""The examples do what they print, and the Trainer of transformers saves, resumes and reloads an adapter."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from surm import SurmConfig
from tests.tools.skips import needs
from tests.tuners.helpers import tiny_bert

ROOT = Path(__file__).parents[2]
IDS = torch.arange(48 * 6).reshape(48, 6) % 50
EXAMPLES = [{"input_ids": ids, "labels": ids.sum() % 3} for ids in IDS]
STEPS = 6  # an epoch of EXAMPLES
FORMS = {"weight": {"structure": "toeplitz"}, "adapter": {"form": "adapter", "structure": "bottleneck"}}


def printed(script: str, *options: str) -> list[str]:
    """The lines that an example prints, in a process of its own."""
    command = [sys.executable, ROOT / "examples" / script, *options]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def example(*options: str) -> str:
    """The last line that examples/trainer.py prints."""
    return printed("trainer.py", *options)[-1]


@needs("valence")
def test_a_new_process_gives_the_predictions_of_the_one_that_trained(tmp_path):
    short = ("--model", "tiny_bert", "--fraction", "0.05", "--epochs", "1")
    trained = example(*short, "--folder", str(tmp_path))
    assert trained.startswith("accuracy 0.")
    assert example(*short, "--load", str(tmp_path)) == trained
    # What is read is the folder, not the seed that both processes share.
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("surm_" in key and tensor.any() for key, tensor in saved.items())


@pytest.mark.slow
@needs("valence")
@needs("builtin_bert")
def test_the_built_in_model_learns_the_words_and_is_read_again(tmp_path):
    trained = example("--folder", str(tmp_path))
    assert float(trained.split()[1]) > 0.8  # always answering "negative": 0.56
    assert example("--load", str(tmp_path)) == trained


@pytest.mark.slow
@pytest.mark.parametrize(("quantise", "package"), [("none", "trl"), ("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_new_process_gives_the_logits_and_answers_of_the_language_model_that_trained(quantise, package, tmp_path):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    options = ("--model", "tiny_llama", "--quantise", quantise)
    trained = printed("sft.py", *options, "--steps", "10", "--folder", str(tmp_path))[-5:]
    assert trained[0].startswith("logits ")
    assert printed("sft.py", *options, "--load", str(tmp_path))[-5:] == trained
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("surm_" in key and tensor.any() for key, tensor in saved.items())


@pytest.mark.slow
@needs("builtin_llama")
def test_the_built_in_language_model_learns_to_answer_with_a_number(tmp_path):
    answers = printed("sft.py", "--folder", str(tmp_path))[-4:]
    assert all(re.fullmatch(r"\d{3} \+ \d{3} = '\d+'", answer) for answer in answers)


class StopAfter(TrainerCallback):
    """An interruption right after the checkpoint of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def trainer_of(folder: Path, form: str, **settings) -> Trainer:
    set_seed(0)
    model = get_peft_model(tiny_bert(), SurmConfig(task_type="SEQ_CLS", dropout=0.1, **FORMS[form]))
    arguments = TrainingArguments(
        folder,
        num_train_epochs=2,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        save_strategy="epoch",
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=EXAMPLES, eval_dataset=EXAMPLES)


def trained_parameters(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_training_ends_as_one_without_a_stop(form, tmp_path):
    whole = trainer_of(tmp_path / "whole", form)
    untrained = trained_parameters(whole.model)
    whole.train()
    stopped = trainer_of(tmp_path / "stopped", form)
    stopped.add_callback(StopAfter(STEPS))
    stopped.train()
    assert stopped.state.global_step == STEPS
    resumed = trainer_of(tmp_path / "stopped", form)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2 * STEPS
    assert same(trained_parameters(resumed.model), trained_parameters(whole.model))
    for other in (untrained, trained_parameters(stopped.model)):
        assert not same(trained_parameters(whole.model), other)


@pytest.mark.parametrize("form", FORMS)
def test_the_best_adapter_is_read_again_at_the_end(form, tmp_path):
    trainer = trainer_of(
        tmp_path, form, eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="score"
    )
    scores = iter([1.0, 0.0, 0.0])  # of the two epochs, and of the evaluation below
    trainer.compute_metrics = lambda _: {"score": next(scores)}
    trainer.train()
    assert trainer.state.best_global_step == STEPS
    first, last = (load_file(tmp_path / f"checkpoint-{n}/adapter_model.safetensors") for n in (STEPS, 2 * STEPS))
    trainer.save_model(tmp_path / "best")
    saved = load_file(tmp_path / "best/adapter_model.safetensors")
    assert same(saved, first)
    assert not same(saved, last)

    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "best").eval()
    expected = torch.from_numpy(trainer.predict(EXAMPLES).predictions)
    torch.testing.assert_close(loaded(IDS).logits.detach(), expected, rtol=1e-5, atol=1e-6)
