import pytest

from surm.report.experiments import ExperimentPlan, gather
from surm.report.records import read_records
from tests.report import made_up


@pytest.fixture
def make_experiment(tmp_path):
    """Write made-up runs and gather them: `make_experiment({"circulant": 0.98, "LoRA r=1": 0.95})`."""

    def make(accuracies, *, label="", missing=(), name="laptop", **options):
        folder = tmp_path / name
        signatures = made_up.write_experiment(folder, accuracies, **options)
        plan = ExperimentPlan(name, "ViT-S/14 on digits", [*signatures, *missing])
        return gather(plan, read_records(folder), known={}, label=label)

    return make
