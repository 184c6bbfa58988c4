"""One bad value in a record: the file is named as damaged, or the report and the plan are made with it."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from surm.config.schema import TableConfig
from surm.experiments.plan import Experiment, Planned
from surm.experiments.status import print_plan, status
from surm.records.record import Record, read_records
from surm.report import view
from surm.report.drawing import Picture
from surm.report.page import build
from surm.report.plan import ComparisonPlan, GridPlan, Plan, StudyPlan
from surm.report.reportable import check_reportable
from surm.shared.errors import RecordError
from surm.shared.paths import PUBLISHED

VALUES = {"null": "null", "text": '"x"', "-1": "-1", "list": "[]", "object": "{}", "infinite": "1e400", "true": "true"}
VALUES |= {"nested": "[[1], [[2]]]", "huge": "1e300", "long": "9" * 400, "NaN": "NaN"}
MARK = "the value to replace"


def paths(value: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value; of a list its first item stands for all."""
    if before:
        yield before
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*before, key))


def replaced(record: dict[str, Any], path: tuple[str | int, ...], text: str) -> str:
    record = copy.deepcopy(record)
    block: Any = record
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = MARK
    return json.dumps(record).replace(json.dumps(MARK), text)


def example(name: str) -> Path:
    """A published record: of a run with each kind of method, or of a study."""
    for record in read_records(PUBLISHED).values():
        own = record.asked["study"]["name"] if record.is_study else record.asked["structure"]["name"]
        if own == name and record.finished:
            return record.path
    raise LookupError(name)


EXAMPLES = {name: example(name) for name in ("kronecker", "lora", "psd_fit", "ldr_fit", "pinwheel")}
SEARCH: dict[str, Any] = {
    "signature": "5ea4c4000000",
    "status": "finished",
    "asked": {
        "study": {"name": "pinwheel_search", "seeds": [100], "epochs": 9, "paper_losses": {"frozen": 0.2}},
    },
    "happened": {
        "settings": {
            "points": 100,
            "noise": 0.1,
            "activation": "relu",
            "rates": {"update": {"frozen": {"full": 0.003}}},
            "tried": {
                "data": [{"points": 100, "noise": 0.1, "activation": "relu", "losses": {"frozen": 0.2}}],
                "rates": {"update": {"frozen": {"full": {"0.003": 0.2, "0.009": None}}}},
            },
        },
        "seconds": 1.0,
        "error": None,
    },
    "where": {},
}


def good(name: str) -> dict[str, Any]:
    record: dict[str, Any] = SEARCH if name == "pinwheel_search" else json.loads(EXAMPLES[name].read_text())
    return record


def plans(record: dict[str, Any]) -> list[Plan]:
    signature = record["signature"]
    if "study" in record["asked"]:
        return [StudyPlan("e", "E", [signature], study=record["asked"]["study"]["name"])]
    asked = {signature: record["asked"]}
    return [
        ComparisonPlan("e", "E", [signature], ["image_gain_over_lora"]),
        GridPlan("g", "G", [signature], ["image_gain_over_lora"], asked=asked),
    ]


def put(folder: Path, name: str, text: str) -> Path:
    """A record of one's own machine, with predictions where the published one has some."""
    path = folder / "runs" / good(name)["signature"] / "record.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are put into words and not drawn."""
    monkeypatch.setattr(Picture, "write", lambda self, path, label="": self.words())
    monkeypatch.setattr(Picture, "figure", lambda self, label="": None)
    monkeypatch.setattr(view, "to_svg", lambda figure, name, title, words: "<svg></svg>")


def check_page(folder: Path, name: str, text: str) -> bool:
    """Build the page; whether the record was damaged, which it then says."""
    path = put(folder, name, text)
    stored = read_records(folder / "runs", check=check_reportable)
    page = build(plans(good(name)), folder / "none", folder / "runs", folder / "out", further=True)
    written = page.with_suffix(".html").read_text()
    assert "<h1>" in written
    if stored.damaged:
        assert list(stored.damaged) == [path]
        assert "not a whole record" in written
        assert str(path) in page.read_text()
    return bool(stored.damaged)


NAMES = [*EXAMPLES, "pinwheel_search"]


@pytest.mark.sample(10)
@pytest.mark.parametrize("name", NAMES)
def test_the_good_record_is_no_damage(tmp_path: Path, words_only: None, name: str) -> None:
    assert not check_page(tmp_path, name, json.dumps(good(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", VALUES)
def test_every_value_of_a_record_may_be_wrong(tmp_path: Path, words_only: None, name: str, value: str) -> None:
    record = good(name)
    damaged = sum(
        check_page(tmp_path / str(number), name, replaced(record, path, VALUES[value]))
        for number, path in enumerate(paths(record))
    )
    assert damaged > 0


QUICK = [(path, value) for path in paths(good("kronecker")) for value in VALUES if path[0] != "asked"][::9]


@pytest.mark.sample(10)
@pytest.mark.parametrize(("path", "value"), QUICK)
def test_a_wrong_value_stops_no_page(tmp_path: Path, words_only: None, path: tuple[str | int, ...], value: str) -> None:
    check_page(tmp_path, "kronecker", replaced(good("kronecker"), path, VALUES[value]))


@dataclass(frozen=True)
class Asked(Planned):
    """What a record was asked, in an experiment of one run, with its folder where this machine has them."""

    question: dict[str, Any]

    @property
    def table(self) -> TableConfig:
        return TableConfig(name="one")

    @property
    def asked(self) -> dict[str, Any]:
        return self.question

    @property
    def output_dir(self) -> str:
        return "outputs"

    def execute(self, display: object) -> Record:
        raise NotImplementedError

    def result(self, record: Record) -> list[str]:
        raise NotImplementedError

    @classmethod
    def of_member(cls, member: object) -> list[Self]:
        raise NotImplementedError

    def describe(self) -> str:
        return "the run"

    def cells(self) -> tuple[str, str, str, str]:
        return "method", "data", "0.1", "0"


LISTED = [(name, path, value) for name in NAMES for path in paths(good(name)) for value in VALUES]


@pytest.mark.sample(12)
@pytest.mark.parametrize(("name", "path", "value"), LISTED[::7])
def test_status_and_plan_name_a_damaged_record_and_go_on(
    name: str, path: tuple[str | int, ...], value: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Asked(good(name)["asked"])
    file = asked.folder.record
    file.parent.mkdir(parents=True)
    file.write_text(replaced(good(name), path, VALUES[value]))
    try:
        expected = Record.read(file).status
    except RecordError as damage:
        expected, reason = "damaged", str(damage)
    experiment = Experiment("one", "One run", [], [asked])
    status([experiment])
    said = capsys.readouterr().out
    assert said.startswith(f"one: 1 {expected}\n")
    if expected == "damaged":
        assert f"{file} is not a whole record ({reason})" in said
    print_plan([experiment])
    rows = capsys.readouterr().out
    assert f" {expected} " in next(line for line in rows.splitlines() if line.startswith(asked.signature))
    assert ("Left: 0 different runs" in rows) == (expected == "finished")
