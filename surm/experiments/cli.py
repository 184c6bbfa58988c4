"""What the scripts share: errors as one sentence, and the choice of experiments."""

import argparse
import errno
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from surm.config.compose import is_hydras
from surm.experiments.plan import Experiment, load_scale, load_scale_experiments
from surm.shared.errors import Interrupted, UserError
from surm.shared.options import Parser, count
from surm.shared.processes import is_main

STORAGE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
)

# No markup: what is printed holds settings such as [q, k] and sentences of others, which would be read as styles.
console = Console(soft_wrap=True, highlight=False, markup=False, quiet=not is_main())
# PEFT asks transformers for a property under its old name; nobody here can act on the warning.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


@contextmanager
def command() -> Iterator[None]:
    """Show an expected error as one sentence with a non-zero exit code; anything else is a bug and keeps its trace."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("surm").setLevel(logging.INFO)
    try:
        yield
        sys.stdout.flush()
    except (UserError, FileNotFoundError) as error:
        sys.exit(f"Error: {error}" if is_main() else 1)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        sys.exit(1)
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


def _reader_has_left() -> bool:
    """Whether nobody reads the output any more, as after `| head -1`; then the rest of it goes nowhere."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return True


def experiment_parser(description: str | None, *, seeds: bool = True) -> argparse.ArgumentParser:
    """The options that choose experiments and settings, for `chosen_experiments`."""
    parser = Parser(description=description)
    parser.add_argument("--scale", default="laptop", help="a folder of conf/experiment, or a file of conf/scale")
    if seeds:
        parser.add_argument("--seeds", type=count(1000), help="number of seeds in place of the experiment's own")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment: digits, or laptop/digits")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for every run")
    return parser


def chosen_experiments(arguments: argparse.Namespace, *, seeds: int | None = None) -> list[Experiment]:
    """The experiments that the options of `experiment_parser` choose; Hydra's own settings choose nothing."""
    seeds = seeds or arguments.seeds
    settings = [setting for setting in arguments.set if not is_hydras(setting)]
    return load_scale_experiments(load_scale(arguments.scale), seeds=seeds, only=arguments.only, overrides=settings)


def make_options(arguments: argparse.Namespace) -> str:
    """The same choice as variables of `make`, beside SCALE and ONLY."""
    options = [f"SEEDS={arguments.seeds}"] if arguments.seeds else []
    return " ".join([*options, *([f"SET='{' '.join(arguments.set)}'"] if arguments.set else [])])
