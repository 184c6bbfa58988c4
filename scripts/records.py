"""Look after the records of runs: `make status`, `make publish`, `make wandb-sync`."""

import argparse

from surm.cli import command, publish, status, wandb_sync


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["status", "publish", "wandb-sync"])
    parser.add_argument("--scale", default="laptop", help="a file of conf/scale")
    parser.add_argument("--seeds", type=int, help="number of seeds in place of the experiment's own")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment of conf/experiment")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run")
    arguments = parser.parse_args()

    actions = {"status": status, "publish": publish, "wandb-sync": wandb_sync}
    with command():
        actions[arguments.action](arguments.scale, arguments.seeds, arguments.only, arguments.set)


if __name__ == "__main__":
    main()
