"""Small runs that several tests share."""

import os
import signal
from dataclasses import replace
from pathlib import Path

from surm.config.compose import compose_run, composer
from surm.config.run import Run
from surm.training import loop as train

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    "model=tiny_vit",
    "trainer.epochs=2",
    "trainer.batch_size=64",
    "trainer.max_steps=24",
    "trainer.checkpoint_every=5",
]


def configure(folder: Path, *overrides: str) -> Run:
    with composer():
        config = compose_run([*SMALL, *overrides])  # the last of two values for one setting counts
    return Run.of(replace(config, output_dir=str(folder)))


def quiet(*_: object) -> None:
    """Where a test does not care what is said."""


def stop_after(step: int) -> train.Report:
    def report(done: int, steps: int, values: dict[str, float]) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return report
