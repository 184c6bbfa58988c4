"""Compare the trained weights of finished runs with the backbone's, matrix by matrix.

python scripts/analyse.py run=6e5f2a4e3f5b
python scripts/analyse.py run=6e5f2a4e3f5b,f3e545f5cbf5 output_dir=outputs to=results
python scripts/analyse.py run=... model_path=<folder> dataset_path=<folder>   (for a run that had them)

Writes <to>/analysis/<signature>.json (`to` is output_dir if not given), and the table and figure of all analyses there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from surm.experiments.cli import command, console
from surm.records.storage import check_output, write_json
from surm.report.studies import weights as report
from surm.shared.errors import ConfigError
from surm.studies.weights import Given, analyse

SETTINGS = ("run", "output_dir", "to", "model_path", "dataset_path")


def main(arguments: Sequence[str]) -> None:
    settings = read_settings(arguments)
    output_dir = settings.get("output_dir", "outputs")
    folder = Path(settings.get("to", output_dir))
    check_output(folder)
    given = Given(settings.get("model_path"), settings.get("dataset_path"))
    analyses = {name: analyse(name, output_dir, console.print, given) for name in settings["run"].split(",")}
    for signature, analysis in analyses.items():  # none is written before all are there
        write_json(folder / "analysis" / f"{signature}.json", analysis)
        print(report.by_layer(analysis))
    table = report.write(folder)
    console.print(f"Analyses: {folder / 'analysis'}; table: {table}; figure: {folder / report.FIGURE}")


def read_settings(arguments: Sequence[str]) -> dict[str, str]:
    """Settings as key=value, checked.

    Raises:
        ConfigError: one sentence.
    """
    settings: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in SETTINGS:
            raise ConfigError(f"{argument}: settings are written as key=value, and are {', '.join(SETTINGS)}.")
        if key in settings or not value:
            raise ConfigError(f"{argument}: give {key} once, and with a value.")
        settings[key] = value
    if "run" not in settings:
        raise ConfigError("give run=<signature>, or several with commas; `make status` lists runs.")
    return settings


if __name__ == "__main__":
    with command():
        main(sys.argv[1:])
