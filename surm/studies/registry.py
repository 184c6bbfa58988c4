"""Studies that need no backbone: matrices fitted by matrices, and a network on a toy task.

A study is a module with four names: an options class (its first field is `name`), `validate`, `parts` and `compute`.
A part is what one record is asked; the parts of a study together are its table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from surm.studies import family_fit, ldr_fit, pinwheel, pinwheel_search, psd_fit

SCIENCE_VERSION = 1

Question = dict[str, Any]
"""What one part of a study is asked."""


class Study(NamedTuple):
    """How a study is asked and how it answers."""

    options: type[Any]  # dataclass; `study.<field>=...` on the command line
    validate: Callable[[Any], None]  # raises ValueError, one sentence
    parts: Callable[[Any], list[Question]]
    compute: Callable[[Question, Callable[[str], None]], dict[str, Any]]  # the `happened` block; says how it goes


STUDIES: dict[str, Study] = {
    "ldr_fit": Study(ldr_fit.LdrFitOptions, ldr_fit.validate, ldr_fit.parts, ldr_fit.compute),
    "psd_fit": Study(psd_fit.PsdFitOptions, psd_fit.validate, psd_fit.parts, psd_fit.compute),
    "family_fit": Study(family_fit.FamilyFitOptions, family_fit.validate, family_fit.parts, family_fit.compute),
    "pinwheel": Study(pinwheel.PinwheelOptions, pinwheel.validate, pinwheel.parts, pinwheel.compute),
    "pinwheel_search": Study(
        pinwheel_search.PinwheelSearchOptions, pinwheel_search.validate, pinwheel_search.parts, pinwheel_search.compute
    ),
}
