"""Which structure suits a model and a dataset, before training: the share of the gradient that each family captures.

python scripts/advise.py model=builtin_bert dataset=valence
python scripts/advise.py check=true   (compares the scores with the published runs, about 40 minutes of one core)
"""

import json
import sys
from pathlib import Path

from surm.advice import CHECK, advise_task, check, compose_advice
from surm.cli import command, console
from surm.record import write_atomically, write_json
from surm.report import advice as report


def main() -> None:
    config = compose_advice(sys.argv[1:])
    if config.check:
        write_json(CHECK, check(console.print))
        print(report.trust(json.loads(CHECK.read_text())))
        return
    found = advise_task(config)
    title = f"{config.model.name} on {config.dataset.name}"
    place = Path(config.output_dir) / "advice" / f"{config.model.name}_{config.dataset.name}.json"
    write_atomically(place, found.to_json().encode())
    report.heat_map(found, f"{title}: {config.advise.update}", place.with_suffix(".png"))
    tables = [report.by_layer(found)] if config.advise.by_layer else []
    print("\n".join([f"\n{title}\n", *tables, report.by_family(found)]))
    print(f"{found.recommendation}\n")
    print(report.trust(json.loads(CHECK.read_text())))
    console.print(f"\nAll numbers: {place}; heat map: {place.with_suffix('.png')}")


if __name__ == "__main__":
    with command():
        main()
