"""The ten systems, each by its file in `conf/structure`: trained, saved, loaded by a new process, merged, converted."""

import copy
import os
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor, nn

from surm.data import load_task
from surm.methods.base import Method
from surm.methods.registry import make_method
from surm.models import load_backbone
from surm.tuners import SurmLinear, conversion_error
from tests.tools.runs import configure

STEPS = 20
SYSTEMS: dict[str, list[str]] = {  # what is shrunk
    "circulant": [],
    "melora": ["blocks=4", "rank=2"],
    "hadamard": [],
    "lora_mini": ["rank=2"],
    "lora_xs": ["rank=4"],
    "dynamic_dora": ["rank=3"],
    "adalora": ["rank=3"],
    "lora2": ["rank=3", "outer_rank=2", "target_rank=1"],
    "aurora": ["rank=4"],
    "lorta": [],
}
RANKS = {  # that an update has at most, as systems of bounded rank say it
    "melora": 8,  # blocks times rank
    "lora_mini": 2,
    "lora_xs": 4,
    "dynamic_dora": 3,
    "adalora": 3,
    "lora2": 2,
    "aurora": 4,
    "lorta": 4,
}
DATA = {"tiny_bert": "valence", "tiny_vit": "digits"}
FUSED = {"tiny_bert": 1, "tiny_vit": 3}  # queries, keys and values in a layer

LOADED = """
import sys
from pathlib import Path
import torch, surm
from peft import PeftModel
from surm.models import load_backbone

@torch.no_grad()
def logits(model):
    output = model(**inputs)
    return getattr(output, "logits", output)

folder, name, labels = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
inputs, found = torch.load(folder / "inputs.pt"), {}
for system in sys.argv[4:]:
    model = PeftModel.from_pretrained(load_backbone(name, num_labels=labels).module, folder / system).eval()
    found[system] = [logits(model), logits(model.merge_and_unload())]
torch.save(found, folder / "found.pt")
"""


class Trained(NamedTuple):
    model: str
    labels: int
    methods: dict[str, Method]
    inputs: dict[str, Tensor]
    found: dict[str, list[Tensor]]  # by system, in another process: what the loaded model gives, and merged


def logits(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output = module(**inputs)
    return getattr(output, "logits", output)


def trained(run: Any, task: Any, steps: int = STEPS) -> tuple[Method, dict[str, Tensor]]:
    """A method after some steps on the task's first rows, and inputs: its last ones."""
    torch.manual_seed(0)
    backbone = load_backbone(run.config.model.name, num_labels=task.num_labels)
    method = make_method(run.asked["structure"])
    examples = task.objective.examples(task.train.subset(np.arange(48)), backbone)
    batches = [
        examples.finish(examples.collate([examples.unfinished[row] for row in range(first, first + 16)]))
        for first in (0, 16, 32)
    ]
    module = method.apply(backbone, run.asked.get("placement"), steps).train()
    optimizer = torch.optim.AdamW([parameter for _, parameter in method.trained_parameters()], lr=0.02)
    for step, batch in enumerate(islice(cycle(batches[:2]), steps)):
        loss, more = task.objective.loss(module, batch), method.extra_loss()
        (loss if more is None else loss + more).backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        optimizer.zero_grad()
    method.finish()
    module.eval()
    return method, {name: tensor for name, tensor in batches[2].items() if name != "labels"}


@pytest.fixture(scope="module", params=["tiny_bert", pytest.param("tiny_vit", marks=pytest.mark.slow)])
def ten(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder: Path = tmp_path_factory.mktemp(request.param)
    task, methods, inputs = load_task(DATA[request.param]), dict[str, Method](), dict[str, Tensor]()
    for system, options in SYSTEMS.items():
        asked = [f"structure={system}", *(f"structure.{option}" for option in options)]
        run = configure(folder, *asked, f"model={request.param}", f"dataset={DATA[request.param]}")
        methods[system], inputs = trained(run, task)
        methods[system].module.save_pretrained(folder / system)
    torch.save(inputs, folder / "inputs.pt")
    arguments = [str(folder), request.param, str(task.num_labels), *SYSTEMS]
    subprocess.run([sys.executable, "-c", LOADED, *arguments], check=True, env=os.environ, timeout=300)
    return Trained(request.param, task.num_labels, methods, inputs, torch.load(folder / "found.pt"))


def base(ten: Trained) -> nn.Module:
    return load_backbone(ten.model, num_labels=ten.labels).module.eval()


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_new_process_loads_and_merges_what_was_trained(ten: Trained, system: str) -> None:
    module = ten.methods[system].module
    expected = logits(module, ten.inputs)
    with module.disable_adapter():  # the head's, too
        assert (logits(module, ten.inputs) - expected).abs().max() > 0.01
    merged = logits(copy.deepcopy(module).merge_and_unload(), ten.inputs)
    for found in (merged, *ten.found[system]):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if system in RANKS:  # of which nothing was there at the start
        layers = [layer for layer in module.modules() if isinstance(layer, SurmLinear)]
        assert max(layer.get_delta_weight("default").abs().max() for layer in layers) > 1e-4


@pytest.mark.parametrize("system", RANKS)
def test_an_update_of_bounded_rank_is_an_ordinary_lora(ten: Trained, system: str) -> None:
    conversion = pytest.importorskip("peft.tuners.lora.conversion", reason="this peft has no conversion to LoRA")
    module, rank = ten.methods[system].module, RANKS[system] * FUSED[ten.model]
    config, weights = conversion.convert_to_lora(module, rank=rank)
    lora = PeftModel(base(ten), config).eval()
    assert not set_peft_model_state_dict(lora, weights).unexpected_keys
    torch.testing.assert_close(logits(lora, ten.inputs), logits(module, ten.inputs), rtol=1e-5, atol=1e-5)
    assert conversion_error(module, [rank])[rank] < 1e-5


@pytest.mark.parametrize("system", ["circulant", "hadamard"])
def test_the_error_of_other_conversions_is_what_is_said(ten: Trained, system: str) -> None:
    """Against the weights before and after a merge, by NumPy."""
    method, before = ten.methods[system], dict(base(ten).named_parameters())
    said = conversion_error(method.module, [1, 4, 16])
    after = dict(copy.deepcopy(method.module).merge_and_unload().named_parameters())
    weights = [name for name in before if before[name].dim() == 2 and not name.startswith(method.head)]
    updates = [(after[name] - before[name]).double().numpy(force=True) for name in weights]
    values = [np.linalg.svd(update, compute_uv=False) for update in updates]
    total = sum(np.sum(value**2) for value in values)
    for rank, error in said.items():
        lost = sum(np.sum(value[rank:] ** 2) for value in values)
        np.testing.assert_allclose(error, np.sqrt(lost / total), rtol=1e-3)
    print(f"{system}: relative error of LoRA by rank", {rank: round(error, 3) for rank, error in said.items()})
    assert said[1] > said[4] > said[16] > 0.1


def test_auroras_gate_refuses_to_merge(tmp_path: Path) -> None:
    run = configure(tmp_path, "structure=aurora", "structure.gate=true", "model=tiny_bert", "dataset=valence")
    method, inputs = trained(run, load_task("valence"), steps=2)
    expected = logits(method.module, inputs)
    method.module.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load_backbone("tiny_bert", num_labels=2).module, tmp_path).eval()
    torch.testing.assert_close(logits(loaded, inputs), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"^aurora with gate=True cannot be merged, .* with gate=False\.$") as caught:
        loaded.merge_and_unload()
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(logits(loaded, inputs), expected, rtol=0, atol=1e-6)
