"""Run the experiments of a scale, then write tables, figures and verdicts: `make reproduce`."""

from surm.cli import chosen_experiments, command, experiment_parser, print_plan, report, run_all
from surm.compose import load_scale


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("--dry", action="store_true", help="print the runs, which are done and what the rest costs")
    arguments = parser.parse_args()

    with command():
        scale = load_scale(arguments.scale)
        experiments = chosen_experiments(arguments)
        if arguments.dry:
            print_plan(experiments)
            return
        failures = run_all([run for experiment in experiments for run in experiment.runs])
        report(experiments, scale.label, scale.name)
        if failures:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
