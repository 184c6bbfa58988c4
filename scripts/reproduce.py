"""Run the experiments of a scale, then write tables, figures and verdicts: `make reproduce`."""

from surm.cli import chosen_experiments, command, experiment_parser, make_options
from surm.compose import check_launcher, load_scale
from surm.launch import launch_experiments
from surm.overview import print_plan
from surm.results import report
from surm.runner import run_all


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
        if arguments.launcher == "basic":
            left = run_all([run for experiment in experiments for run in experiment.runs])
        else:
            left = launch_experiments(experiments, arguments.launcher, arguments.seeds, arguments.set)
        report(experiments, scale.label, scale.name, options=make_options(arguments))
        if left:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
