"""What a record file must hold, so that whatever is made of records can rest on it. Further keys are allowed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from surm.shared.errors import RecordError

Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Epoch = Annotated[float, Field(ge=0, le=1e9)]


class Schema(BaseModel, strict=True, allow_inf_nan=False):
    """A JSON object: no value is converted, no number is infinite."""


class Where(Schema):
    dirty: bool = False
    commit: str | None = None
    sources: str | None = None
    content_hashes: dict[str, str] = {}
    machine: dict[str, Any] = {}


class Happened(Schema):
    error: str | None = None


Asked = TypeVar("Asked")
Outcome = TypeVar("Outcome")


class RecordOf(Schema, Generic[Asked, Outcome]):
    """The blocks of a record, by what it was asked and what happened."""

    signature: str
    status: Literal["finished", "interrupted", "failed"]
    asked: Asked
    happened: Outcome
    where: Where


AnyRecord = RecordOf[dict[str, Any], dict[str, Any]]


# --- runs of a model -------------------------------------------------------------------------------------------------


class Named(Schema):
    name: str


class Dataset(Named):
    evaluate_on: str
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0


class Optim(Schema):
    lr: float


class Structure(Named):
    factor_shape: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None


class Placement(Schema):
    form: str = "weight"
    parts: list[str] = []


class Trainer(Schema):
    epochs: Epoch | None = None
    max_steps: Count | None = None


class AskedRun(Schema):
    seed: int
    model: Named
    dataset: Dataset
    structure: Structure
    optim: Optim
    trainer: Trainer
    placement: Placement = Placement()


class HistoryRow(Schema):
    """A training loss, or an evaluation."""

    step: Count
    epoch: Epoch
    loss: float | None = None
    evaluation: dict[str, float] | None = None


class Result(Happened):
    primary_metric: str
    metrics: dict[str, float]
    best_epoch_metrics: dict[str, float]
    evaluation_examples: Count
    trainable_parameters: Count
    head_parameters: Count
    total_parameters: Annotated[Count, Field(gt=0)]
    history: list[HistoryRow]
    steps: Count | None = None
    baselines: dict[str, float] = {}
    seconds: Seconds = 0.0
    seconds_per_step: Seconds | None = None
    seconds_per_step_by_epoch: list[Seconds | None] = []  # a record made before 2026-12 has none
    peak_memory_bytes: Count | None = None


UnfinishedRun = RecordOf[AskedRun, Happened]
FinishedRun = RecordOf[AskedRun, Result]


# --- parts of a study ------------------------------------------------------------------------------------------------


class AskedPart(Schema):
    study: Named


class Rows(Happened):
    rows: list[dict[str, Any]]
    seconds: Seconds = 0.0


class Settings(Happened):
    settings: dict[str, Any]
    seconds: Seconds = 0.0


UnfinishedPart = RecordOf[AskedPart, Happened]
FinishedPart = RecordOf[AskedPart, Rows]
FinishedSearch = RecordOf[AskedPart, Settings]


RULES = {
    "missing": "is missing",
    "model_type": "is no JSON object",
    "dict_type": "is no JSON object",
}  # else pydantic's


def check(stored: Any) -> None:
    """Refuse what is no record.

    Raises:
        RecordError: where in the file it breaks which rule, in a few words.
    """
    with damage_in_words():
        record = AnyRecord.model_validate(stored)
        if "study" in record.asked:
            finished = FinishedSearch if "settings" in record.happened else FinishedPart
            (finished if record.status == "finished" else UnfinishedPart).model_validate(stored)
        elif record.status == "finished":
            _check_scores(FinishedRun.model_validate(stored).happened)
        else:
            UnfinishedRun.model_validate(stored)


@contextmanager
def damage_in_words() -> Iterator[None]:
    """Say where in a record it breaks which rule, in a few words.

    Raises:
        RecordError: in place of pydantic's error.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise RecordError(f"{where} {RULES.get(first['type'], first['msg'].lower())}") from None


def _check_scores(result: Result) -> None:
    evaluations = [row.evaluation for row in result.history if row.evaluation is not None]
    for scores in (result.metrics, result.best_epoch_metrics, *evaluations):
        if result.primary_metric not in scores:
            raise RecordError(f"a score of the primary metric, {result.primary_metric}, is missing")
        if not -1 <= scores[result.primary_metric] <= 1:
            raise RecordError(f"a score of the primary metric, {result.primary_metric}, is not from -1 to 1")
