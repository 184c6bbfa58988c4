"""Search each method's learning rate on a slice of the training split: `make tune`."""

import argparse

from surm.cli import command, run_or_none
from surm.compose import load_scale
from surm.plan import PlannedRun, load_scale_experiments
from surm.tune import first_rates, search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="laptop", help="a file of conf/scale whose experiments are tuned")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment of conf/experiment")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run")
    parser.add_argument("--fraction", type=float, help="of the training split, for a shorter search")
    parser.add_argument("--dry", action="store_true", help="print what would be tuned")
    arguments = parser.parse_args()

    with command():
        scale = load_scale(arguments.scale)
        experiments = load_scale_experiments(scale, seeds=1, only=arguments.only, overrides=arguments.set)
        runs = [run for experiment in experiments for run in experiment.runs if isinstance(run, PlannedRun)]
        if not arguments.dry:
            search(runs, run_or_none, arguments.fraction)
            return
        for run in runs:
            name = run.config.structure.name
            first = ", ".join(f"{rate:g}" for rate in first_rates(name))
            print(f"{run.config.model.name} x {run.config.dataset.name}, {name}: {first}, then beyond the edges")


if __name__ == "__main__":
    main()
