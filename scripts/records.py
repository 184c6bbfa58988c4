"""Look after the records of runs: `make status`, `make publish`, `make wandb-sync`."""

from pathlib import Path

from surm.experiments.cli import chosen_experiments, command, experiment_parser
from surm.experiments.status import status
from surm.experiments.upload import RUNS, wandb_sync


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("action", choices=["status", "publish", "wandb-sync"])
    parser.add_argument(
        "--records",
        nargs="+",
        type=Path,
        default=[RUNS],
        metavar="FOLDER",
        help="what wandb-sync uploads, such as results/runs",
    )
    arguments = parser.parse_args()

    with command():
        match arguments.action:
            case "status":
                status(chosen_experiments(arguments))
            case "publish":
                from surm.experiments.publish import publish  # loads the report

                publish()
            case "wandb-sync":
                wandb_sync(arguments)


if __name__ == "__main__":
    main()
