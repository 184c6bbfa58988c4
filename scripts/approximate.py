"""Compute a study without a backbone, then its table, figures and verdicts; nothing that is done is computed again.

python scripts/approximate.py study=psd_fit
python scripts/approximate.py experiment=full/ldr_fit
python scripts/approximate.py -m study=psd_fit,ldr_fit,pinwheel hydra/launcher=joblib   (docs/launchers.md)
"""

import sys

import hydra
from omegaconf import DictConfig

from surm.config.command import check_command, is_sweep
from surm.config.compose import register_schema, typed
from surm.experiments.cli import command
from surm.experiments.launch import sweep
from surm.experiments.runner import run_study
from surm.studies.entry import APPROXIMATE


@hydra.main(config_path="../conf", config_name="approximate", version_base="1.3")
def main(config: DictConfig) -> None:
    run_study(typed(config, APPROXIMATE))


if __name__ == "__main__":
    with command():
        members = check_command(sys.argv[1:], APPROXIMATE)
        if is_sweep(sys.argv[1:]):
            sys.exit(sweep(sys.argv[1:], members, APPROXIMATE) > 0)
        register_schema()
        main()
