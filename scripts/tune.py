"""Search each method's learning rate on a slice of the training split: `make tune`.

Several processes with one command share the runs.
"""

import re
from pathlib import Path

import yaml

from surm.experiments.cli import chosen_experiments, command, experiment_parser
from surm.experiments.plan import training_runs
from surm.experiments.runner import ThisProcess
from surm.experiments.status import print_searches
from surm.experiments.sweep import run_shared
from surm.experiments.tune import search, unequal_searches, wandb_sweeps
from surm.records.storage import check_output, write_atomically
from surm.shared.options import share


def main() -> None:
    parser = experiment_parser(__doc__, seeds=False)
    parser.add_argument("--fraction", type=share, help="of the training split, for a shorter search")
    parser.add_argument("--dry", action="store_true", help="print the searches, what is done and what the rest costs")
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
        if arguments.dry:
            print_searches(runs, arguments.fraction)
        else:
            search(runs, lambda wanted: run_shared(wanted, ThisProcess()), arguments.fraction)
            print("\n".join(unequal_searches()))


if __name__ == "__main__":
    main()
