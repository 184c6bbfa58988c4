"""Write tables, figures and verdicts from the records that are there: `make report`."""

from surm.cli import chosen_experiments, command, experiment_parser, report
from surm.compose import load_scale


def main() -> None:
    arguments = experiment_parser(__doc__).parse_args()

    with command():
        scale = load_scale(arguments.scale)
        report(chosen_experiments(arguments), scale.label, scale.name)


if __name__ == "__main__":
    main()
