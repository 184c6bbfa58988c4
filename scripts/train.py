"""Fine-tune one model on one dataset with one method; with -m, sweep.

python scripts/train.py model=builtin_vit dataset=digits structure=circulant seed=0
python scripts/train.py -m experiment=laptop/digits
python scripts/train.py -m structure=circulant,lora seed=0,1,2
python scripts/train.py -m experiment=paper/table5_glue hydra/launcher=submitit_slurm   (docs/launchers.md)
"""

import sys

import hydra
from omegaconf import DictConfig

from surm.config.command import check_command, is_sweep
from surm.config.compose import TRAIN, register_schema, typed
from surm.experiments.cli import command
from surm.experiments.launch import sweep
from surm.experiments.runner import run_with_bar


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    run_with_bar(typed(config, TRAIN))


if __name__ == "__main__":
    with command():
        members = check_command(sys.argv[1:], TRAIN)
        if is_sweep(sys.argv[1:]):
            sys.exit(sweep(sys.argv[1:], members, TRAIN) > 0)
        register_schema()
        main()
