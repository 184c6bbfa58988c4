"""Plans for records that no experiment file asks for, so that any folder of records can be read."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from surm.methods.names import data_name
from surm.records.record import Record
from surm.report.plan import ComparisonPlan, Plan, StudyPlan
from surm.report.studies import STUDY_REPORTS

METHOD = ("structure", "placement", "optim", "seed")
"""What the rows of a table differ in; all else that was asked is the same for a whole table."""


def further_plans(plans: Sequence[Plan], records: Mapping[str, Record]) -> list[Plan]:
    """One plan for each task, and each study, of the finished records that `plans` do not cover.

    Runs scored on the selection slice stay out: they chose a learning rate, and are no result.
    """
    signatures = {signature for plan in plans for signature in plan.signatures}
    requests = {record.request for name, record in records.items() if name in signatures and not record.is_study}
    studies: dict[str, list[str]] = defaultdict(list)
    tasks: dict[str, list[Record]] = defaultdict(list)
    for record in records.values():
        if not record.finished or record.signature in signatures:
            continue
        if record.is_study:
            studies[record.asked["study"]["name"]].append(record.signature)
        elif record.request not in requests and record.asked["dataset"].get("evaluate_on") != "selection":
            shared = {key: value for key, value in record.asked.items() if key not in METHOD}
            tasks[json.dumps(shared, sort_keys=True)].append(record)
    further: list[Plan] = [
        ComparisonPlan(f"further_{number}", _title(runs[0]), [run.signature for run in runs])
        for number, (_, runs) in enumerate(sorted(tasks.items()), start=1)
    ]
    return further + [
        StudyPlan(f"further_{name}", f"Further records of the study {name}", sorted(parts), study=name)
        for name, parts in sorted(studies.items())
        if name in STUDY_REPORTS
    ]


def _title(run: Record) -> str:
    """Model, data and length of training, in words."""
    dataset, trainer = run.asked["dataset"], run.asked.get("trainer", {})
    share = f" (a share of {100 * dataset['fraction']:g} %)" if "fraction" in dataset else ""
    steps, epochs = trainer.get("max_steps"), trainer.get("epochs")
    length = f", {steps} steps" if steps else f", {epochs:g} epochs" if epochs else ""
    return f"Further runs: {run.asked['model']['name']} on {data_name(dataset)}{share}{length}"
