"""Records are whole or absent, and a damaged one is a sentence, whatever the damage is."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from surm.records.record import Record, read_record, read_records, write_predictions
from surm.records.storage import write_atomically, write_json
from surm.report.reportable import check_reportable
from surm.shared.errors import RecordError, StorageError


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "record.json"
    write_atomically(target, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match=r"record\.json cannot be written \(No space left on device\)"):
        write_atomically(target, b"new, and longer")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_not_a_number_never_gets_into_a_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "record.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


ASKED: dict[str, Any] = {
    "model": {"name": "builtin_vit", "revision": "1"},
    "dataset": {"name": "digits", "evaluate_on": "test", "fraction": 0.5},
    "structure": {"name": "lora", "rank": 1},
    "placement": {"form": "weight", "parts": ["q", "v"]},
    "optim": {"lr": 0.003},
    "trainer": {"epochs": 1},
    "seed": 7,
}
HAPPENED: dict[str, Any] = {
    "metrics": {"accuracy": 0.75},
    "primary_metric": "accuracy",
    "best_epoch_metrics": {"accuracy": 0.8, "loss": 0.6, "epoch": 1.0},
    "evaluation_examples": 4,
    "trainable_parameters": 3,
    "head_parameters": 2,
    "total_parameters": 10,
    "history": [
        {"step": 1, "epoch": 0.5, "loss": 0.7, "lr": 0.003},
        {"step": 2, "epoch": 1.0, "evaluation": {"accuracy": 0.75, "loss": 0.6}},
    ],
    "seconds_per_step": 0.1,
    "error": None,
}
RUN = {"signature": "abc", "status": "finished", "asked": ASKED, "happened": HAPPENED, "where": {"dirty": False}}
PART = {
    "signature": "abc",
    "status": "finished",
    "asked": {"study": {"name": "psd_fit", "draw": 0}},
    "happened": {"rows": [{"error": 0.5}]},
    "where": {},
}
ABSENT = object()


def changed(record: dict[str, Any], path: str, value: Any) -> bytes:
    """The file of a record with another value at a dotted path, or with none."""
    record = copy.deepcopy(record)
    *outer, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    block: Any = record
    for key in outer:
        block = block[key]
    if value is ABSENT:
        del block[last]
    else:
        block[last] = value
    return json.dumps(record).encode()


TEXTS = {
    "empty": b"",
    "half": b'{"signature": "a", "status',
    "not UTF-8": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "one block": b'{"signature": "a"}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a number of 5,000 digits": b'{"signature": ' + b"9" * 5_000 + b"}",
    "not a number": json.dumps(RUN).replace("0.75", "NaN").encode(),
    "infinite": json.dumps(RUN).replace("0.75", "1e999").encode(),
    "a count of 4,000 digits": json.dumps(RUN)
    .replace('"total_parameters": 10', f'"total_parameters": {"9" * 4000}')
    .encode(),
    "a rate of 4,000 digits": json.dumps(RUN)
    .replace('"lr": 0.003}, "trainer"', f'"lr": {"9" * 4000}}}, "trainer"')
    .encode(),
    **{
        f"{name}: {path}={value if value is not ABSENT else 'absent'!r}": changed(record, path, value)
        for name, record, changes in (
            (
                "run",
                RUN,
                [
                    ("signature", 7),
                    ("status", "done"),
                    ("asked", []),
                    ("asked.seed", "7"),
                    ("asked.seed", True),
                    ("asked.model", "builtin_vit"),
                    ("asked.model.name", ABSENT),
                    ("asked.dataset.name", None),
                    ("asked.dataset.fraction", "half"),
                    ("asked.structure", ABSENT),
                    ("asked.optim.lr", "auto"),
                    ("asked.placement", ["q"]),
                    ("happened", None),
                    ("happened.metrics", {}),
                    ("happened.metrics", {"f1": 0.5}),
                    ("happened.metrics.accuracy", "0.75"),
                    ("happened.metrics.accuracy", None),
                    ("happened.primary_metric", ABSENT),
                    ("happened.best_epoch_metrics", None),
                    ("happened.best_epoch_metrics.accuracy", ABSENT),
                    ("happened.evaluation_examples", 4.5),
                    ("happened.trainable_parameters", "many"),
                    ("happened.trainable_parameters", -1),
                    ("happened.history", {}),
                    ("happened.history.0", 3),
                    ("happened.history.0.epoch", ABSENT),
                    ("happened.history.1.evaluation", {"loss": 0.6}),
                    ("happened.seconds_per_step", "fast"),
                    ("happened.peak_memory_bytes", 1.5),
                    ("where", ABSENT),
                    ("where.dirty", "no"),
                    ("where.content_hashes", {"data": 7}),
                ],
            ),
            (
                "part",
                PART,
                [
                    ("asked.study", "psd_fit"),
                    ("asked.study.name", ABSENT),
                    ("happened.rows", ABSENT),
                    ("happened.rows", {}),
                    ("happened.rows.0", 1),
                    ("happened", {"settings": "best"}),
                ],
            ),
            ("failed run", RUN | {"status": "failed", "happened": {"error": "x"}}, [("happened.error", 3)]),
        )
        for path, value in changes
    },
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "abc").mkdir()
    return tmp_path / "abc" / "record.json"


@pytest.mark.sample(12)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_damaged_record_is_one_sentence_and_is_listed(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    check_damaged(path)


def test_a_folder_in_place_of_a_record_is_damage_too(path: Path) -> None:
    path.mkdir()
    check_damaged(path)


def check_damaged(path: Path) -> None:
    with pytest.raises(
        RecordError, match=r"record\.json is not a whole record \([^\n]+\): move it away and start"
    ) as one:
        read_record(path)
    assert len(str(one.value)) < len(str(path)) + 200
    records = read_records(path.parents[1])
    assert records == {}
    assert list(records.damaged) == [path]
    assert "\n" not in records.complaints[0]


def test_the_reason_says_where_in_the_file_and_what_is_wrong(path: Path) -> None:
    path.write_bytes(changed(RUN, "happened.history.0.step", "first"))
    with pytest.raises(RecordError, match=r"\(happened\.history\.0\.step input should be a valid integer\)"):
        read_record(path)


@pytest.mark.sample(12)
@pytest.mark.parametrize(
    "record",
    [
        RUN,
        RUN | {"status": "interrupted", "happened": {"metrics": {}, "history": [], "error": None}},
        RUN | {"status": "failed", "happened": {"error": "no memory"}},
        PART,
        PART | {"happened": {"settings": {"noise": 0.1}}},
        PART | {"status": "failed", "happened": {"error": "no convergence"}},
    ],
)
def test_a_record_is_written_as_it_was_read(path: Path, record: dict[str, Any]) -> None:
    write_json(path, record)
    before = path.read_bytes()
    stored = read_record(path)
    assert stored is not None
    assert stored == read_records(path.parents[1])["abc"]
    stored.write()
    assert path.read_bytes() == before


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none.json") is None
    (tmp_path / "outputs").write_text("a file where the folder should be")
    assert read_record(tmp_path / "outputs" / "runs" / "record.json") is None


@pytest.mark.sample(12)
@pytest.mark.parametrize(
    "structure",
    [{"name": "lora", "alpha": "big"}, {"name": "lora", "dropout": [0.1]}, {"name": "peft_vera", "arguments": 3}],
)
def test_a_method_that_has_no_name_is_damage_for_those_who_name_it(path: Path, structure: dict[str, Any]) -> None:
    path.write_bytes(changed(RUN, "asked.structure", structure))
    assert list(read_records(path.parents[1])) == ["abc"]
    named = read_records(path.parents[1], check=check_reportable)
    assert list(named.damaged) == [path]


def test_predictions_lie_beside_the_record(tmp_path: Path) -> None:
    own, published = (
        Record(file, "abc", "finished", {}, {}, {}) for file in (tmp_path / "record.json", tmp_path / "abc.json")
    )
    assert own.predictions_path == tmp_path / "predictions.json"
    assert published.predictions_path == tmp_path / "abc.predictions.json"


@pytest.mark.sample(12)
@pytest.mark.parametrize("text", [TEXTS[name] for name in ("empty", "not UTF-8", "null", "a list", "deep")])
def test_damaged_predictions_leave_the_score(path: Path, text: bytes) -> None:
    write_json(path, RUN)
    (path.parent / "predictions.json").write_bytes(text)
    record = read_record(path)
    assert record is not None
    assert (record.score, record.evaluation) == (75.0, None)
    assert record.damage.startswith(f"{path.parent / 'predictions.json'} is damaged (")


def test_losses_lie_beside_predictions_with_four_decimals(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json", "x", "finished", ASKED, HAPPENED, {})
    write_predictions(record.predictions_path, [0, 1, 1], [0, 0, 1], [0.00004, 1.23456, 12.3])
    evaluation = record.evaluation
    assert evaluation is not None
    assert evaluation.losses is not None
    assert evaluation.losses.tolist() == pytest.approx([0, 1.2346, 12.3])
    assert evaluation.predictions.tolist() == [0, 0, 1]
    assert len(record.predictions_path.read_text().splitlines()) == 5  # a line for each of the three

    write_predictions(record.predictions_path, [0, 1, 1], [0, 0, 1])
    without = Record(record.path, "x", "finished", ASKED, HAPPENED, {}).evaluation
    assert without is not None
    assert without.losses is None
    with pytest.raises(ValueError, match="a loss of inf"):
        write_predictions(record.predictions_path, [0], [0], [float("inf")])


@pytest.mark.parametrize("losses", ["[1, 2]", '["a", 1, 2]', "7"])
def test_losses_that_do_not_fit_are_damage(tmp_path: Path, losses: str) -> None:
    record = Record(tmp_path / "record.json", "x", "finished", ASKED, HAPPENED, {})
    text = f'{{"labels": [0, 1, 1], "predictions": [0, 0, 1], "losses_in_1e-4": {losses}}}'
    record.predictions_path.write_text(text)
    assert record.evaluation is None
    assert "is damaged" in record.damage
