"""Search each method's learning rate on a slice of the training split: `make tune`."""

from surm.cli import chosen_experiments, command, experiment_parser, run_or_none
from surm.plan import PlannedRun
from surm.tune import first_rates, search


def main() -> None:
    parser = experiment_parser(__doc__, seeds=False)
    parser.add_argument("--fraction", type=float, help="of the training split, for a shorter search")
    parser.add_argument("--dry", action="store_true", help="print what would be tuned")
    arguments = parser.parse_args()

    with command():
        experiments = chosen_experiments(arguments, seeds=1)
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
