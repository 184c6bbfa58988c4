import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from surm.records.record import Record
from surm.report.claims import read_claims
from surm.report.studies import pinwheel, pinwheel_search
from surm.studies.pinwheel import FULL, METHODS, num_parameters

PAPER = Path("results/papers/surm")
# Final losses by reading and method; every setting of one reading alike.
LOSSES = {
    "in_place": {FULL: 0.2, "LoRA r=1": 0.9, "LoRA r=2": 0.5, "LoRA r=4": 0.25, "LoRA r=8": 0.2, "circulant": 0.3}
    | {"symmetric Toeplitz": 0.32, "Toeplitz": 0.28},
    "update": {FULL: 0.2, "LoRA r=1": 0.3, "LoRA r=2": 0.25, "LoRA r=4": 0.22, "LoRA r=8": 0.2, "circulant": 0.3}
    | {"symmetric Toeplitz": 0.31, "Toeplitz": 0.27},
}


def record(reading, embedding, seeds, losses, spread):
    """A record whose losses differ from seed to seed by `spread` (log), in a way of its own for each method."""
    rows, curves = [], {}
    for place, (method, loss) in enumerate(losses.items()):
        finals = [loss * math.exp(spread * math.sin(3 * place + 5 * seed)) for seed in seeds]
        rows += [
            {
                "method": method,
                "seed": seed,
                "loss": final,
                "late_loss": 2 * final if method == "LoRA r=4" else final,
                "accuracy": 0.9,
                "cka": 1.0 if method == FULL else 0.9 - 0.1 * final,
                "parameters": num_parameters(method),
                "rate": 0.01,
            }
            for seed, final in zip(seeds, finals, strict=True)
        ]
        curves[method] = [[1.6, 1.5, 1.0, final] for final in finals]
    happened = {
        "rows": rows,
        "curves": {"epochs": [0, 1, 10, 100], "losses": curves},
        "regions": {
            "seed": seeds[0],
            "radius": 25.0,
            "points": [[at, -at] for at in range(10)],
            "labels": [0, 1, 2, 3, 4] * 2,
            "decisions": {method: ["01234"] * 5 for method in losses},
        },
    }
    asked = {
        "study": {
            "name": "pinwheel",
            "reading": reading,
            "embedding": embedding,
            "seeds": seeds,
            "epochs": 100,
            "points": 2,
            "noise": 0.1,
            "activation": "relu",
            "rates": dict.fromkeys(losses, 0.01),
        }
    }
    return Record(Path("made-up"), f"{reading}{embedding}{seeds}", "finished", asked, happened, {})


def records(losses=LOSSES, *, spread=0.02, blocks=((0, 1, 2), (3, 4))):
    return [
        record(reading, embedding, list(block), losses[reading], spread)
        for reading in ("in_place", "update")
        for embedding in ("frozen", "trained")
        for block in blocks
    ]


def test_a_table_has_a_row_for_each_setting_and_method():
    frame = pinwheel.table(records())
    assert list(frame.columns) == list(pinwheel.COLUMNS)
    assert len(frame) == 4 * 8
    assert list(frame["method"][:8]) == [FULL, *METHODS]
    row = frame[frame["method"] == "circulant"].iloc[0]
    finals = [0.3 * math.exp(0.02 * math.sin(15 + 5 * seed)) for seed in range(5)]
    assert (row["reading"], row["embedding"], row["parameters"], row["n"]) == (
        "in place of the weight",
        "frozen",
        128,
        5,
    )
    assert row["loss"] == pytest.approx(np.mean(finals))
    assert row["sd"] == pytest.approx(np.std(finals, ddof=1))
    assert row["paper"] == 0.27
    updates = frame[frame["reading"] == "update of a frozen weight"]
    assert updates["paper"].isna().all()  # the paper's figure reads as a matrix in place


def test_table_and_effects_do_not_depend_on_the_order_of_records():
    some = records()
    assert pinwheel.table(some).equals(pinwheel.table(some[::-1]))
    assert pinwheel.effects(some) == pinwheel.effects(some[::-1])


def test_effects_are_paired_by_seed():
    effects = pinwheel.effects(records())
    ratios = effects["log loss ratio of LoRA r=1 to circulant, in place of the weight, embedding frozen"]
    expected = [math.log(3) + 0.02 * (math.sin(3 + 5 * seed) - math.sin(15 + 5 * seed)) for seed in range(5)]
    assert ratios == pytest.approx(expected)
    near = effects[
        "log loss, distance of Toeplitz to LoRA r=1 minus distance to full, in place of the weight, embedding trained"
    ]
    assert near == pytest.approx([math.log(0.9 / 0.28) - math.log(0.28 / 0.2)] * 5, abs=0.1)
    cka = effects["CKA to full, circulant minus LoRA r=1, in place of the weight, embedding frozen"]
    assert cka == pytest.approx([0.06] * 5, abs=0.005)


def test_claims_read_the_late_median_not_the_last_loss():
    """At a constant rate the last loss jumps; here it is wrong by a factor of 5 and the median is not."""
    jumped = records()
    for one in jumped:
        for row in one.happened["rows"]:
            row["loss"] *= 5 if row["method"] == "circulant" else 1
    assert pinwheel.effects(jumped) == pinwheel.effects(records())


def test_levels_stand_beside_the_papers_and_a_full_network_above_lora_is_named():
    notes = pinwheel.notes(records())
    assert any(
        "LoRA r=1 0.9" in note and "(paper 0.90)" in note and "times circulant, in the paper at 3.3" in note
        for note in notes
    )
    losses = {reading: {**losses, "full": 0.5} for reading, losses in LOSSES.items()}
    assert any("full ends at 0.5" in note and "LoRA r=8" in note for note in pinwheel.notes(records(losses)))


def test_every_claim_names_an_effect_and_stands_in_the_experiments():
    claims = {name: claim for name, claim in read_claims(PAPER).items() if claim.rule.get("study") == "pinwheel"}
    effects = pinwheel.effects(records())
    assert {claim.rule["effect"] for claim in claims.values()} <= effects.keys()
    experiment = yaml.safe_load(Path("conf/experiment/laptop/pinwheel.yaml").read_text())  # the full one starts from it
    assert experiment["table"]["claims"] == list(claims)


# --- conclusions ------------------------------------------------------------------------------------------------------


def conclusion(in_place, update, **options):
    """The first conclusion when LoRA r=1 ends at these losses and circulant at 0.3."""
    losses = {
        "in_place": LOSSES["in_place"] | {"LoRA r=1": in_place},
        "update": LOSSES["update"] | {"LoRA r=1": update},
    }
    return next(note for note in pinwheel.notes(records(losses, **options)) if note.startswith("With the embedding"))


def test_a_gap_in_place_only_is_the_rank_of_a_layer():
    note = conclusion(0.9, 0.3)
    assert "3.00 [" in note
    assert "the figure shows the rank of a layer, not of an update." in note


def test_a_gap_in_both_readings_is_shared_out():
    assert "50 % of the gap is the rank of a layer" in conclusion(1.2, 0.6)  # factors 4 and 2


def test_equal_gaps_do_not_speak_of_layers():
    assert "do not differ beyond the spread of the seeds" in conclusion(0.9, 0.9)


def test_no_gap_in_place_is_said():
    assert "not established" in conclusion(0.3, 0.3)
    assert "not established" in conclusion(0.4, 0.3, spread=0.8)  # too noisy to tell


def test_one_seed_decides_nothing():
    assert conclusion(0.9, 0.3, blocks=[(0,)]).endswith("one seed decides nothing.")


def test_notes_say_at_which_rank_lora_catches_up():
    notes = pinwheel.notes(records())
    assert any(
        note.startswith("In place of the weight, embedding frozen")
        and "final loss is not above circulant's: LoRA r=4 (0.2" in note
        and "epochs: LoRA r=8 (0.2" in note
        for note in notes
    )
    slow = {reading: {**losses, "circulant": 0.1} for reading, losses in LOSSES.items()}
    assert any("none up to LoRA r=8 (0.2" in note for note in pinwheel.notes(records(slow)))


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loss_curves", "decision_regions"])
def test_figures_are_drawn_even_where_a_setting_was_not_run(kind, tmp_path):
    (picture,) = (one for one in pinwheel.pictures(records()[:-2]) if one.kind == kind)
    picture.write(tmp_path / "figures" / "x.png")
    assert (tmp_path / "figures" / "x.png").stat().st_size > 20_000
    assert "in place of the weight, embedding frozen, circulant:" in picture.words()


# --- the search -------------------------------------------------------------------------------------------------------


def test_the_search_shows_what_was_tried():
    settings = {
        "points": 20,
        "noise": 0.1,
        "activation": "relu",
        "rates": {"update": {"frozen": {"circulant": 0.009}}},
        "tried": {
            "data": [
                {"points": 20, "noise": 0.1, "activation": "relu", "losses": {"frozen": 0.21, "trained": 0.16}}
                | {"distance": 0.1}
            ],
            "rates": {"update": {"frozen": {"circulant": {"0.003": 0.5, "0.009": 0.4, "0.027": None}}}},
        },
    }
    asked = {"study": {"seeds": [100, 101], "epochs": 2000, "paper_losses": {"frozen": 0.2, "trained": 0.15}}}
    search = Record(Path("made-up"), "s", "finished", asked, {"settings": settings}, {})
    frame = pinwheel_search.table([search])
    assert list(frame["choice"]) == ["data", "data", "learning rate"]
    assert frame.iloc[2][["loss", "rate", "tried"]].tolist() == [
        0.4,
        0.009,
        "0.003: 0.500, 0.009: 0.400, 0.027: diverged",
    ]
    assert "20 points of a class, 10 % outliers, relu" in pinwheel_search.notes([search])[0]
