"""Build the W&B project's workspace for the experiments of a scale: scores, parameters, curves, cost.

python scripts/dashboard.py --scale laptop --project surm --entity my-team
python scripts/dashboard.py --scale laptop --json outputs/workspace.json   (without an account)
"""

from pathlib import Path

from surm.experiments.cli import chosen_experiments, command, experiment_parser
from surm.experiments.dashboard import build_views, save_views, write_views
from surm.experiments.upload import tracking_options


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument("--project", help="at W&B (default: tracking.project)")
    parser.add_argument("--entity", help="user or team at W&B (default: tracking.entity, else the account's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the workspace's own JSON, send nothing")
    arguments = parser.parse_args()

    with command():
        options, arguments.set = tracking_options(arguments.set)
        views = build_views(
            chosen_experiments(arguments),
            arguments.scale,
            project=arguments.project or options["project"],
            entity=arguments.entity or options["entity"] or "",
        )
        file = arguments.json or (Path("outputs/workspace.json") if options["mode"] == "offline" else None)
        if file:
            write_views(views, file)
        print(f"{len(views)} views: {file}" if file else "\n".join(save_views(views)))


if __name__ == "__main__":
    main()
