"""Search each method's learning rate on a slice of the training split: `make tune`."""

import re
from pathlib import Path

import yaml

from surm.experiments.cli import chosen_experiments, command, experiment_parser
from surm.experiments.plan import training_runs
from surm.experiments.runner import attempt
from surm.experiments.tune import first_rates, search, wandb_sweeps
from surm.records.storage import check_output, write_atomically
from surm.shared.options import share


def main() -> None:
    parser = experiment_parser(__doc__, seeds=False)
    parser.add_argument("--fraction", type=share, help="of the training split, for a shorter search")
    parser.add_argument("--dry", action="store_true", help="print what would be tuned")
    parser.add_argument("--wandb-sweep", type=Path, metavar="FOLDER", help="write each search as a W&B sweep, run none")
    arguments = parser.parse_args()

    with command():
        runs = training_runs(chosen_experiments(arguments, seeds=1))
        if arguments.wandb_sweep:
            check_output(arguments.wandb_sweep)
            for (task, method), sweep in wandb_sweeps(runs, arguments.fraction).items():
                file = arguments.wandb_sweep / (re.sub(r"\W+", "_", f"{task} {method}").strip("_") + ".yaml")
                write_atomically(file, yaml.safe_dump(sweep, sort_keys=False).encode())
                print(f"wandb sweep {file}")
            return
        if not arguments.dry:
            search(runs, lambda run: run.finished_record() or attempt(run), arguments.fraction)
            return
        for run in runs:
            name = run.config.structure.name
            first = ", ".join(f"{rate:g}" for rate in first_rates(name))
            print(f"{run.config.model.name} x {run.config.dataset.name}, {name}: {first}, then beyond the edges")


if __name__ == "__main__":
    main()
