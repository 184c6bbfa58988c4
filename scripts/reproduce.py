"""Run the experiments of a scale, then write tables, figures and verdicts: `make reproduce`."""

import argparse

from surm.cli import command, print_plan, report, run_all
from surm.compose import load_scale
from surm.plan import load_scale_experiments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="laptop", help="a file of conf/scale: laptop, smoke or full")
    parser.add_argument("--seeds", type=int, help="number of seeds in place of the experiment's own")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment of conf/experiment")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run")
    parser.add_argument("--dry", action="store_true", help="print the runs, which are done and the estimated time")
    arguments = parser.parse_args()

    with command():
        scale = load_scale(arguments.scale)
        experiments = load_scale_experiments(scale, seeds=arguments.seeds, only=arguments.only, overrides=arguments.set)
        if arguments.dry:
            print_plan(experiments)
            return
        failures = run_all([run for experiment in experiments for run in experiment.runs])
        report(experiments, scale.label, scale.name)
        if failures:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
