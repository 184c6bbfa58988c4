"""Fine-tune one model on one dataset with one method; with -m, sweep.

python scripts/train.py model=builtin_vit dataset=digits structure=circulant seed=0
python scripts/train.py -m experiment=laptop_digits
python scripts/train.py -m structure=circulant,lora seed=0,1,2
"""

import sys

import hydra
from omegaconf import DictConfig

from surm.cli import command, run_with_bar
from surm.compose import TRAIN, check_command, register_schema, typed
from surm.config import FormError


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    try:
        asked = typed(config, TRAIN)
    except FormError as hole:  # a sweep over structure and placement has some; alone it was refused before
        print(f"left out of the sweep: {hole}")
        return
    run_with_bar(asked)


if __name__ == "__main__":
    with command():
        check_command(sys.argv[1:], TRAIN)
        register_schema()
        main()
