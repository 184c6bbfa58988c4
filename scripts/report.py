"""Write tables, figures and verdicts from the records that are there: `make report`."""

import argparse

from surm.cli import command, report
from surm.compose import load_scale
from surm.plan import load_scale_experiments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="laptop", help="a file of conf/scale")
    parser.add_argument("--seeds", type=int, help="number of seeds in place of the experiment's own")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment of conf/experiment")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run")
    arguments = parser.parse_args()

    with command():
        scale = load_scale(arguments.scale)
        experiments = load_scale_experiments(scale, seeds=arguments.seeds, only=arguments.only, overrides=arguments.set)
        report(experiments, scale.label, scale.name)


if __name__ == "__main__":
    main()
