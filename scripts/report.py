"""Write tables, figures and pages from the records that are there: `make report`.

python scripts/report.py --scale published --picture results/figures/report_page.png   (the README's picture)
"""

from pathlib import Path

from surm.experiments.cli import chosen_experiments, command, experiment_parser, make_options
from surm.experiments.plan import load_scale
from surm.experiments.publish import report
from surm.report.screenshot import take_picture


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument(
        "--records",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="read these folders in place of outputs/runs, and what lies outside the experiments, too",
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="photograph the page's top, too (needs Chromium)")
    arguments = parser.parse_args()

    with command():
        scale = load_scale(arguments.scale)
        experiments, options = chosen_experiments(arguments), make_options(arguments)
        page = report(experiments, scale, records=arguments.records, options=options)
        if arguments.picture:
            take_picture(page, arguments.picture)


if __name__ == "__main__":
    main()
