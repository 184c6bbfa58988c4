"""A run's identity: what is in it, what is not."""

import pytest

from surm import rates
from surm.compose import compose_run, composer
from surm.config import ignored_line
from surm.signature import asked, signature


def sign(*overrides: str) -> str:
    with composer():
        return signature(asked(compose_run(["model=tiny_vit", *overrides])))


BASE = sign()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=builtin_vit",
        "dataset=mnist5k",
        "dataset.evaluate_on=selection",
        "structure=toeplitz",
        "structure.parametrization=direct",
        "structure.alpha=2",
        "structure.init_weights=authors",
        "placement=weight_qv",
        "optim.lr=0.5",
        "optim.decay_structure=true",
        "trainer.epochs=4",
        "trainer.precision=bf16",
        "trainer.batch_size=16",
    ],
)
def test_science_is_in_the_signature(override: str) -> None:
    assert sign(override) != BASE


@pytest.mark.parametrize(
    "override",
    [
        "tracking=wandb",
        "output_dir=elsewhere",
        "trainer.threads=1",
        "trainer.log_every=1",
        "trainer.checkpoint_every=7",
        "trainer.eval_batch_size=3",
        "table.title=another",
        "structure.terms=1",
        "structure.parametrization=product",
        "placement.parts=[v,k,q]",
        "structure.rank=3",
        "structure.symmetric=false",
    ],
)
def test_what_does_not_move_numbers_is_not(override: str) -> None:
    assert sign(override) == BASE


def test_settings_that_a_baseline_ignores_are_left_out() -> None:
    probe = sign("structure=linear_probe")
    for ignored in ("structure.rank=3", "structure.alpha=2", "placement=weight_qv", "optim.decay_structure=true"):
        assert sign("structure=linear_probe", ignored) == probe
    assert sign("structure=lora", "placement=weight_qv") != sign("structure=lora")
    assert sign("structure=lora_r2") != sign("structure=lora")


def test_an_ignored_setting_is_named_in_one_line() -> None:
    with composer():
        line = ignored_line(compose_run(["model=tiny_vit", "structure.rank=3", "structure.factors=1"]))
        nothing = ignored_line(compose_run(["model=tiny_vit", "structure=lora", "structure.rank=3"]))
    assert line is not None
    assert "structure.rank=3" in line
    assert "structure.factors=1" in line
    assert nothing is None


def test_the_signature_is_pinned() -> None:
    """Equal questions get equal folders for ever; only a raised SCIENCE_VERSION or schema may change this."""
    question = {"b": [1, 2.5, None], "a": {"c": True}}
    assert signature(question) == "0aa9bb90dad3"
    assert signature({"a": {"c": True}, "b": [1, 2.5, None]}) == signature(question)


def test_a_tuned_rate_stands_in_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = {"tiny_vit/digits": {"circulant": {"lr": 0.0123}}}
    monkeypatch.setattr(rates, "tuned_rates", lambda: tuned)
    with composer():
        circulant = asked(compose_run(["model=tiny_vit"]))
        full = asked(compose_run(["model=tiny_vit", "structure=full"]))
        given = asked(compose_run(["model=tiny_vit", "optim.lr=0.7"]))
    assert circulant["optim"]["lr"] == 0.0123
    assert full["optim"]["lr"] == rates.USUAL_RATES["full"]
    assert given["optim"]["lr"] == 0.7
