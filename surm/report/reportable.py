"""What a record must hold beyond `surm.records.schema`, so that its table, sentences and figures can be made."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from surm.methods.names import label
from surm.records.record import Record
from surm.records.schema import Asked, Count, Outcome, Schema, damage_in_words
from surm.report.studies import family_fit, ldr_fit, pinwheel, psd_fit
from surm.shared.errors import RecordError

Loss = Annotated[float, Field(ge=0, le=1e9)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]


def _one_of(names: Iterable[str]) -> AfterValidator:
    allowed = tuple(names)

    def check(value: str) -> str:
        _require(value in allowed, f"is none of {', '.join(allowed)}")
        return value

    return AfterValidator(check)


Row = TypeVar("Row")


class Part(Schema, Generic[Asked, Outcome]):
    """One part of a study."""

    asked: Asked
    happened: Outcome


class Rows(Schema, Generic[Row]):
    rows: list[Row]


Reading = Annotated[str, _one_of(pinwheel.READINGS)]
Embedding = Annotated[str, _one_of(pinwheel.EMBEDDINGS)]
Method = Annotated[str, _one_of(pinwheel.FAMILIES)]


def check_reportable(record: Record) -> None:
    """Refuse a record that cannot be reported.

    Raises:
        RecordError: what is wrong with it, in a few words.
    """
    if not record.is_study:
        try:
            label(record.asked)
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise RecordError(f"its method has no name: {error!r}") from None
    elif record.finished and (schema := STUDIES.get(record.asked["study"]["name"])):
        with damage_in_words():
            schema.model_validate({"asked": record.asked["study"], "happened": record.happened})


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise PydanticCustomError("incomplete", "{sentence}", {"sentence": sentence})


# --- matrices fitted by matrices --------------------------------------------------------------------------------------


class PsdRow(Schema):
    target: Annotated[str, _one_of(psd_fit.TARGETS)]
    normalised: Annotated[str, _one_of(psd_fit.READINGS)]
    fit: Annotated[str, _one_of(psd_fit.FITS)]
    parameters: Count
    error: Loss


class PsdAsked(Schema):
    draw: int
    low_rank: int


class Psd(Part[PsdAsked, Rows[PsdRow]]):
    @model_validator(mode="after")
    def _complete(self) -> Self:
        kinds = {(row.target, row.normalised, row.fit) for row in self.happened.rows}
        whole = len(psd_fit.TARGETS) * len(psd_fit.READINGS) * len(psd_fit.FITS)
        _require(len(kinds) == whole, "rows lack a fit of a target")
        return self


class FamilyRow(Schema):
    target: Annotated[str, _one_of(family_fit.TARGETS)]
    fit: Annotated[str, _one_of(family_fit.FITS)]
    parameters: Count
    share: Annotated[float, Field(ge=-1e-9, le=1 + 1e-9)]


class FamilyAsked(Schema):
    draw: int


class Family(Part[FamilyAsked, Rows[FamilyRow]]):
    @model_validator(mode="after")
    def _complete(self) -> Self:
        kinds = {(row.target, row.fit) for row in self.happened.rows}
        _require(len(kinds) == len(family_fit.TARGETS) * len(family_fit.FITS), "rows lack a fit of a target")
        return self


class LdrRow(Schema):
    target: Annotated[str, _one_of(ldr_fit.TARGETS)]
    fit: Literal["warm", "cold", "descent", "svd", "circulant", "toeplitz_symmetric", "toeplitz"]
    parameters: Count
    error: Loss
    terms: Annotated[int, Field(ge=1, le=100_000)] | None = None
    steps: Count | None = None
    converged: bool | None = None


class LdrAsked(Schema):
    draw: int
    cold_starts: int
    tolerance: float
    descent_rate: float
    descent_steps: Annotated[list[Count], Field(min_length=1)]
    near_rank: int = 0
    noise: float = 0.0


class Ldr(Part[LdrAsked, Rows[LdrRow]]):
    @model_validator(mode="after")
    def _complete(self) -> Self:
        rows = self.happened.rows
        _require(len({row.target for row in rows}) == 1, "rows are of several targets, or of none")
        _require({row.fit for row in rows if row.terms is None} == set(ldr_fit.SINGLE), "rows lack a structure")
        terms = {fit: {row.terms for row in rows if row.fit == fit} for fit in ("warm", "cold", "descent", "svd")}
        _require(bool(terms["warm"]), "rows lack warm starts")
        _require(len(set(map(frozenset, terms.values()))) == 1, "rows lack a number of terms")
        looks = {step: {row.terms for row in rows if row.steps == step and row.fit == "descent"} for step in self.looks}
        _require(all(of_step == terms["warm"] for of_step in looks.values()), "rows lack a look at the descent")
        return self

    @property
    def looks(self) -> list[int]:
        return self.asked.descent_steps


# --- networks on a toy task -------------------------------------------------------------------------------------------


class PinwheelRow(Schema):
    method: Method
    seed: int
    loss: Positive
    late_loss: Loss
    accuracy: Share
    cka: float
    parameters: Count
    rate: Positive


class Curves(Schema):
    epochs: Annotated[list[Count], Field(min_length=2)]
    losses: dict[Method, Annotated[list[list[Loss]], Field(min_length=1)]]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _require(set(self.losses) == set(pinwheel.FAMILIES), "losses lack a method")
        lengths = {len(curve) for curves in self.losses.values() for curve in curves}
        _require(lengths == {len(self.epochs)}, "losses and epochs differ in number")
        return self


class Regions(Schema):
    radius: Positive
    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    labels: list[int]
    decisions: dict[Method, Annotated[list[Annotated[str, Field(pattern="^[0-4]+$")]], Field(min_length=1)]]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _require(set(self.decisions) >= set(pinwheel.SHOWN), "decisions lack a method")
        _require(len(self.points) == len(self.labels) > 0, "points and labels differ in number")
        _require(all(len({*map(len, rows)}) == 1 for rows in self.decisions.values()), "decisions are no rectangle")
        return self


class PinwheelAsked(Schema):
    reading: Reading
    embedding: Embedding
    seeds: Annotated[list[int], Field(min_length=1)]
    epochs: Count
    points: Count
    noise: Share
    activation: str


class PinwheelHappened(Rows[PinwheelRow]):
    curves: Curves
    regions: Regions


class Pinwheel(Part[PinwheelAsked, PinwheelHappened]):
    @model_validator(mode="after")
    def _complete(self) -> Self:
        pairs = sorted((row.method, row.seed) for row in self.happened.rows)
        whole = sorted((method, seed) for method in pinwheel.FAMILIES for seed in self.asked.seeds)
        _require(pairs == whole, "rows are not one for each method and seed")
        return self


class Tried(Schema):
    points: Count
    noise: Share
    activation: str
    losses: dict[str, Loss]


class AllTried(Schema):
    data: list[Tried]
    rates: dict[Reading, dict[str, dict[str, dict[str, Loss | None]]]]


class Settings(Schema):
    points: Count
    noise: Share
    activation: str
    rates: dict[Reading, dict[str, dict[str, Positive]]]
    tried: AllTried

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for reading, by_embedding in self.tried.rates.items():
            for embedding, by_method in by_embedding.items():
                for method, tried in by_method.items():
                    rate = self.rates.get(reading, {}).get(embedding, {}).get(method)
                    _require(rate is not None and f"{rate:g}" in tried, "a chosen rate was not tried")
        return self


class SearchAsked(Schema):
    seeds: list[int]
    epochs: Count
    paper_losses: dict[str, float]


class SearchHappened(Schema):
    settings: Settings


STUDIES: Mapping[str, type[Schema]] = {
    "psd_fit": Psd,
    "ldr_fit": Ldr,
    "family_fit": Family,
    "pinwheel": Pinwheel,
    "pinwheel_search": Part[SearchAsked, SearchHappened],
}
