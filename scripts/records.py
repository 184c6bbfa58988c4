"""Look after the records of runs: `make status`, `make publish`, `make wandb-sync`."""

from surm.cli import chosen_experiments, command, experiment_parser, publish, status, wandb_sync


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("action", choices=["status", "publish", "wandb-sync"])
    arguments = parser.parse_args()

    with command():
        match arguments.action:
            case "status":
                status(chosen_experiments(arguments))
            case "publish":
                publish()
            case "wandb-sync":
                wandb_sync()


if __name__ == "__main__":
    main()
