"""Grids from made-up records: methods by tasks."""

import numpy as np

from surm.records.record import read_records
from surm.report.base import Source
from surm.report.plan import GridPlan
from surm.report.sections import make_section
from surm.report.verdict import Claim
from surm.shared.paths import PAPER
from tests.report import made_up

EXAMPLES = 2_000
BIAS = {"form": "adapter", "sites": "houlsby", "adapter_bias": True, "activation": "gelu", "position": "after"}
NO_BIAS = BIAS | {"adapter_bias": False}
METHODS = {  # name -> structure and placement
    **{name: (structure, None) for name, structure in made_up.STRUCTURES.items()},
    "circulant (q, v)": (made_up.STRUCTURES["circulant"], {"form": "weight", "parts": ["q", "v"]}),
    "circulant, Houlsby adapter": ({"name": "circulant", "terms": 1}, BIAS),
    "circulant, Houlsby adapter, no bias": ({"name": "circulant", "terms": 1}, NO_BIAS),
    "Kronecker, Houlsby adapter": ({"name": "kronecker", "terms": 1}, BIAS),
    "Kronecker, Houlsby adapter, no bias": ({"name": "kronecker", "terms": 1}, NO_BIAS),
}


def request_of(name, dataset, seed, *, model="builtin_vit", fraction=None, lr=0.003):
    structure, placement = METHODS[name]
    asked = made_up.asked(structure, seed=seed, model=model, dataset=dataset, lr=lr)
    asked |= {"placement": placement} if placement else {}
    asked["dataset"] |= {"fraction": fraction} if fraction else {}
    return asked


def write_cell(folder, name, accuracies, dataset="digits", **more):
    """One run for each accuracy, exact to one example; the hard examples are the same for every method."""
    labels, planned = np.arange(EXAMPLES) % 10, {}
    for seed, accuracy in enumerate(accuracies):
        asked = request_of(name, dataset, seed, **more)
        right = np.arange(EXAMPLES) >= round((1 - accuracy) * EXAMPLES)
        count = made_up.TRAINABLE.get(name, 27_648)
        planned[made_up.write_run(folder, asked, labels, right, trainable_parameters=count)] = asked
    return planned


def section_of(plan, records, label="", evidence=True):
    """The section of a plan, from records or their folder."""
    stored = records if isinstance(records, dict) else read_records(records)
    return make_section(plan, Source("run", "this run", stored, PAPER, label, evidence))


def make_grid(folder, planned, *, label="", evidence=True, **fields):
    plan = GridPlan("table", "A table", [*planned, *planned], asked=planned, **fields)  # named twice, counted once
    return section_of(plan, folder, label, evidence)


def claim(kind, scope="every", models=(), **rule):
    return Claim("id", "sentence", "place", kind, rule, "needs", scope, models)


def around(mean, seeds=3):
    """Accuracies of seeds that spread by 0.1 points."""
    return [mean + 0.001 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
