import pytest

from surm.records.record import read_records
from surm.report.gather import gather
from surm.report.plan import ComparisonPlan
from tests.report import made_up
from tests.report.grids import make_grid, write_cell


@pytest.fixture
def make_experiment(tmp_path):
    """Write made-up runs and gather them: `make_experiment({"circulant": 0.98, "LoRA r=1": 0.95})`."""

    def make(accuracies, *, missing=(), name="laptop", **options):
        folder = tmp_path / name
        signatures = made_up.write_experiment(folder, accuracies, **options)
        plan = ComparisonPlan(name, "ViT-S/14 on digits", [*signatures, *missing])
        return gather(plan, read_records(folder))

    return make


@pytest.fixture
def grid_of(tmp_path):
    """A grid from {method: {data set: accuracies of seeds 0, 1, ...}}, or {method: accuracy} on one data set."""
    made = []

    def make(cells, **fields):
        folder, planned = tmp_path / str(len(made)), {}
        made.append(folder)
        for name, of_dataset in cells.items():
            for dataset, accuracies in (of_dataset if isinstance(of_dataset, dict) else {"digits": of_dataset}).items():
                planned |= write_cell(folder, name, accuracies, dataset)
        return make_grid(folder, planned, **fields)

    return make
