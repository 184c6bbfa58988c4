"""Fine-tune one model on one dataset with one method; with -m, sweep.

python scripts/train.py model=builtin_vit dataset=digits structure=circulant seed=0
python scripts/train.py -m experiment=laptop/digits
python scripts/train.py -m structure=circulant,lora seed=0,1,2
python scripts/train.py -m experiment=paper/table5_glue hydra/launcher=submitit_slurm   (docs/launchers.md)
"""

import sys

import hydra
from omegaconf import DictConfig

from surm.config.command import answered, check_command, is_sweep
from surm.config.compose import TRAIN
from surm.experiments.cli import command
from surm.experiments.launch import launcher_of
from surm.experiments.plan import plan
from surm.experiments.runner import run_one
from surm.experiments.sweep import run_all


@hydra.main(config_path="../conf", config_name=TRAIN.name, version_base="1.3")
def answer(_: DictConfig) -> None:
    """`--cfg job`, `--help` and the like are answered by Hydra, which then runs nothing."""


if __name__ == "__main__":
    arguments = sys.argv[1:]
    with command():
        if answered(arguments, TRAIN, answer):
            sys.exit()
        runs = plan(check_command(arguments, TRAIN), TRAIN)
        if not is_sweep(arguments):
            run_one(runs[0])
        elif run_all(runs, launcher_of(arguments, TRAIN)):
            sys.exit(1)
