"""What the scripts share: errors as one sentence, the choice of experiments, and words for runs."""

import argparse
import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from surm.experiments.plan import Experiment, load_scale, load_scale_experiments
from surm.methods.names import label
from surm.shared.errors import Interrupted, UserError
from surm.shared.processes import is_main

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO, errno.ENOTDIR)

console = Console(soft_wrap=True, highlight=False, quiet=not is_main())
# PEFT asks transformers for a property under its old name; nobody here can act on the warning.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


@contextmanager
def command() -> Iterator[None]:
    """Show an expected error as one sentence with a non-zero exit code; anything else is a bug and keeps its trace."""
    try:
        yield
    except (UserError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}" if is_main() else 1)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        sys.exit(
            f"Error: {error.filename or 'a file'} cannot be used ({error.strerror}): see that there is room and access."
        )
    except Interrupted as stop:
        if is_main():
            print(f"Interrupted: {stop}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)


def experiment_parser(description: str | None, *, seeds: bool = True) -> argparse.ArgumentParser:
    """The options that choose experiments and settings, for `chosen_experiments`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", default="laptop", help="a file of conf/scale")
    if seeds:
        parser.add_argument("--seeds", type=int, help="number of seeds in place of the experiment's own")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment of conf/experiment")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run")
    return parser


def chosen_experiments(arguments: argparse.Namespace, *, seeds: int | None = None) -> list[Experiment]:
    """The experiments that the options of `experiment_parser` choose."""
    seeds = seeds or arguments.seeds
    scale = load_scale(arguments.scale)
    return load_scale_experiments(scale, seeds=seeds, only=arguments.only, overrides=arguments.set)


def make_options(arguments: argparse.Namespace) -> str:
    """The same choice as variables of `make`, beside SCALE and ONLY."""
    options = [f"SEEDS={arguments.seeds}"] if arguments.seeds else []
    return " ".join([*options, *([f"SET='{' '.join(arguments.set)}'"] if arguments.set else [])])


def describe(question: dict[str, Any]) -> str:
    """One line that names a run, or a part of a study."""
    if "study" in question:
        return f"[bold]{question['study']['name']}[/bold] {part_label(question)}"
    rate, seed = question["optim"]["lr"], question["seed"]
    return f"[bold]{label(question)}[/bold] on {place(question)}, rate {rate:g}, seed {seed}"


def place(question: dict[str, Any]) -> str:
    """Model and data of a run."""
    data = question["dataset"]
    share = f", {100 * data['fraction']:g} %" if "fraction" in data else ""
    split = "" if data["evaluate_on"] == "test" else " (selection)"
    return f"{question['model']['name']} x {data['name']}{share}{split}"


def part_label(question: dict[str, Any]) -> str:
    """What tells a part of a study from the others: its words, and its draw or seeds."""
    settings = {key: value for key, value in question["study"].items() if key != "name"}
    return ", ".join(
        f"{key} {value}" for key, value in settings.items() if isinstance(value, str) or key in ("draw", "seeds")
    )
