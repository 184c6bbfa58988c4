"""Command lines of `argparse` whose errors are one sentence, and the kinds of their values."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that refuses in one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"Error: {' '.join(message.split())}; --help lists the options.\n")


def count(highest: int) -> Callable[[str], int]:
    """The type of a whole number from 1 to `highest`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= highest):
            raise argparse.ArgumentTypeError(
                f"{text} is not possible: give a whole number of at least 1, at most {highest:,}"
            )
        return int(text)

    return read


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not possible: give a share above 0 and at most 1")
    return value
