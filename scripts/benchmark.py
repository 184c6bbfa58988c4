"""Time and peak memory of a training step with each kind of update, relative to a frozen layer: `make benchmark`.

python scripts/benchmark.py --width 768 --tokens 2048
python scripts/benchmark.py --only "LoRA r=1" circulant --peft peft:HRAConfig --kwargs '{"r": 2}'
python scripts/benchmark.py --steps   (whole steps of the built-in models, relative to LoRA r=1)
python scripts/benchmark.py --full --save full   (hours; writes results/benchmark/full.json and its picture)
python scripts/benchmark.py --draw results/benchmark/full.json
"""

import argparse
import sys

from surm.shared.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks lie beside the package, and are not installed with it

from benchmarks.command import options, run
from surm.experiments.cli import command, console
from surm.shared.errors import ConfigError


def main() -> None:
    parser = options()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    with command():
        try:
            found = run(parser.parse_args())
        except ConfigError as error:
            parser.exit(2, f"Error: {error}\n")
        for line in found:
            console.print(line)


if __name__ == "__main__":
    main()
