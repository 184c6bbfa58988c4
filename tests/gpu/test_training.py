"""The training loop on a GPU: it waits for the device where it must, and in no step."""

from pathlib import Path

import pytest
import torch

from surm.data import load_task
from surm.data.encode import encode
from surm.models import load_backbone
from surm.shared.errors import RunError
from surm.training.loop import Loop
from surm.training.losses import Losses
from surm.training.run import execute
from tests.tools.runs import configure, quiet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA sees no GPU"),
]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_no_step_waits_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    step = Loop.step

    def watched(self: Loop, number: int, batches: object) -> torch.Tensor:
        if number < 3:
            return step(self, number, batches)  # type: ignore[arg-type]
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, number, batches)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "step", watched)
    run = configure(tmp_path, "device=cuda", f"trainer.precision={precision}", "trainer.max_steps=8")
    record = execute(run, say=quiet)
    assert record.finished
    assert len(record.happened["seconds_per_step_by_epoch"]) == 1


def test_grey_levels_become_the_same_inputs_as_on_the_cpu() -> None:
    dataset = encode(load_task("digits").train, load_backbone("tiny_vit", num_labels=10))
    batch = dataset.collate([dataset.unfinished[index] for index in range(32)])
    on_gpu = dataset.finish({key: value.cuda() for key, value in batch.items()})
    assert on_gpu["x"].cpu().equal(dataset.finish(batch)["x"])


def test_a_loss_that_is_not_finite_is_met_when_the_losses_are_read() -> None:
    losses = Losses(torch.device("cuda"), rate=0.1)
    for step, value in enumerate((1.0, float("nan"), 2.0), start=1):
        losses.add(step, torch.tensor(value, device="cuda"))
    with pytest.raises(RunError, match="the loss is nan at step 2"):
        losses.read()
