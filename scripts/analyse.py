"""Compare the trained weights of finished runs with the backbone's, matrix by matrix.

python scripts/analyse.py run=6e5f2a4e3f5b
python scripts/analyse.py run=6e5f2a4e3f5b,f3e545f5cbf5 output_dir=outputs to=results
python scripts/analyse.py run=... model_path=<folder> dataset_path=<folder>   (for a run that had them)

Writes <to>/analysis/<signature>.json (`to` is output_dir if not given), and the table and figure of all analyses there.
"""

import sys
from pathlib import Path

from surm.experiments.cli import command, console
from surm.records.storage import write_json
from surm.report.studies import weights as analysis
from surm.shared.errors import ConfigError
from surm.studies.weights import Given, analyse

SETTINGS = ("run", "output_dir", "to", "model_path", "dataset_path")


def main(run: str = "", output_dir: str = "outputs", to: str = "", **paths: str) -> None:
    if not run:
        raise ConfigError("give run=<signature>, or several with commas; `make status` lists runs.")
    folder = Path(to or output_dir)
    for signature in run.split(","):
        found = analyse(signature, output_dir, console.print, Given(**paths))
        write_json(folder / "analysis" / f"{signature}.json", found)
        print(analysis.by_layer(found))
    table = analysis.write(folder)
    console.print(f"Analyses: {folder / 'analysis'}; table: {table}; figure: {folder / analysis.FIGURE}")


if __name__ == "__main__":
    with command():
        settings = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
        if unknown := set(settings) - set(SETTINGS):
            raise ConfigError(f"{', '.join(sorted(unknown))}: the settings are {', '.join(SETTINGS)}.")
        main(**settings)
