"""Training steps on a GPU beside LoRA and PEFT's other methods, against their goals: `make benchmark-gpu`.

python scripts/benchmark_gpu.py   (all of it, in 8 minutes; writes results/benchmark/gpu.json, .md and .png)
python scripts/benchmark_gpu.py --part layers --widths 768 --minutes 3 --output outputs/benchmark/768.json
python scripts/benchmark_gpu.py --merge outputs/benchmark/768.json outputs/benchmark/4096.json   (one result of several)
python scripts/benchmark_gpu.py --tiny --output outputs/benchmark/tiny.json   (a rehearsal without a GPU)
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from benchmarks.gpu import options, run
from surm.shared.errors import UserError


def main() -> None:
    parser = options()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    try:
        found = run(parser.parse_args())
    except UserError as error:
        parser.exit(2, f"Error: {error}\n")
    for line in found:
        print(line, flush=True)


if __name__ == "__main__":
    main()
