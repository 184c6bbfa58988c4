"""Look after the records of runs: `make status`, `make publish`, `make restore`, `make wandb-sync`."""

from pathlib import Path

from surm.experiments.cli import chosen_experiments, command, console, experiment_parser
from surm.experiments.promote import restore
from surm.experiments.status import status
from surm.experiments.upload import RUNS, wandb_sync
from surm.shared.paths import PUBLISHED


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("action", choices=["status", "publish", "restore", "wandb-sync"])
    parser.add_argument(
        "--records",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="what publish and wandb-sync take in place of outputs/runs, and restore in place of results/runs",
    )
    arguments = parser.parse_args()

    with command():
        match arguments.action:
            case "status":
                status(chosen_experiments(arguments))
            case "publish":
                from surm.experiments.publish import publish  # loads the report

                publish(arguments.records)
            case "restore":
                folders = arguments.records or [PUBLISHED]
                copied = sum(restore(folder, RUNS) for folder in folders)
                console.print(f"{copied} records were copied to {RUNS}.")
            case "wandb-sync":
                arguments.records = arguments.records or [RUNS]
                wandb_sync(arguments)


if __name__ == "__main__":
    main()
