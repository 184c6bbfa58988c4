"""Run the experiments of a scale, then write tables, figures and verdicts: `make reproduce`."""

from surm.config.command import check_launcher
from surm.config.compose import TRAIN
from surm.experiments.cli import chosen_experiments, command, experiment_parser, make_options
from surm.experiments.launch import launcher_of
from surm.experiments.plan import load_scale
from surm.experiments.status import print_plan
from surm.experiments.sweep import run_all


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("--dry", action="store_true", help="print the runs, which are done and what the rest costs")
    parser.add_argument("--launcher", default="basic", help="basic, or a file of conf/hydra/launcher")
    arguments = parser.parse_args()

    with command():
        check_launcher(arguments.launcher)
        scale = load_scale(arguments.scale)
        experiments = chosen_experiments(arguments)
        if arguments.dry:
            print_plan(experiments)
            return
        launcher = launcher_of([*arguments.set, f"hydra/launcher={arguments.launcher}"], TRAIN)
        left = run_all([run for experiment in experiments for run in experiment.runs], launcher)

        from surm.experiments.publish import report  # here, since no run loads the report

        report(experiments, scale, options=make_options(arguments))
        if left:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
