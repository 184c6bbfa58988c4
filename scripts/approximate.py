"""Compute a study without a backbone, then its table, figures and verdicts; nothing that is done is computed again.

python scripts/approximate.py study=psd_fit
python scripts/approximate.py experiment=full/ldr_fit
python scripts/approximate.py -m study=psd_fit,ldr_fit,pinwheel hydra/launcher=joblib   (docs/launchers.md)
"""

import sys

import hydra
from omegaconf import DictConfig

from surm.config.command import answered, check_command, is_sweep
from surm.experiments.cli import command
from surm.experiments.launch import launcher_of
from surm.experiments.plan import plan
from surm.experiments.runner import ThisProcess
from surm.experiments.sweep import run_all
from surm.studies.entry import APPROXIMATE


@hydra.main(config_path="../conf", config_name=APPROXIMATE.name, version_base="1.3")
def answer(_: DictConfig) -> None:
    """`--cfg job`, `--help` and the like are answered by Hydra, which then runs nothing."""


if __name__ == "__main__":
    arguments = sys.argv[1:]
    with command():
        if answered(arguments, APPROXIMATE, answer):
            sys.exit()
        parts = plan(check_command(arguments, APPROXIMATE), APPROXIMATE)
        launcher = launcher_of(arguments, APPROXIMATE) if is_sweep(arguments) else ThisProcess()
        left = run_all(parts, launcher)

        from surm.experiments.publish import report_studies  # here, since no run loads the report

        report_studies(parts)
        sys.exit(left > 0)
