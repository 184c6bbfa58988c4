"""A run's identity: what is in it, what is not."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from surm.config import rates
from surm.config.checks import ignored_line
from surm.config.compose import compose_run, composer
from surm.config.run import Run
from surm.config.schema import DatasetConfig, ModelConfig, RunConfig
from surm.methods.registry import METHODS
from surm.records.recorded import signature
from tests.data.hub_layout import write_tiny


def ask(*overrides: str) -> dict[str, Any]:
    with composer():
        return Run.of(compose_run(["model=tiny_vit", *overrides])).asked


def sign(*overrides: str) -> str:
    return signature(ask(*overrides))


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
        "placement=adapter_houlsby",
        "dataset.fraction=0.5",
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
        "structure.size=3",
        "placement.sites=pfeiffer",
        "placement.adapter_bias=false",
        "dataset.fraction=1",
        "device=cpu",
        "trainer.gradient_checkpointing=true",
        "trainer.compile=true",
        "trainer.workers=2",
        "trainer.evaluate_every=2",
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


def test_settings_of_the_other_form_are_left_out() -> None:
    adapter = sign("placement=adapter_houlsby")
    assert sign("placement=adapter_houlsby", "placement.parts=[q]") == adapter
    assert sign("placement=adapter_houlsby", "structure.alpha=2") == adapter
    for setting in ("placement.adapter_bias=false", "placement.activation=tanh", "placement.position=before"):
        assert sign("placement=adapter_houlsby", setting) != adapter
    assert sign("placement=adapter_pfeiffer") != adapter


def test_where_files_lie_is_not_in_the_signature_and_where_a_model_comes_from_is(tmp_path: Path) -> None:
    bert = ["model=bert_base", "structure=circulant", "dataset=glue/mrpc"]
    path = write_tiny("glue/mrpc", tmp_path)
    assert sign(*bert) == sign(*bert, f"dataset.path={path}")
    question = ask(*bert)
    assert question["model"]["revision"] == "86b5e0934494bd15c9632b12f734a8a67f723594"
    assert len(question["dataset"]["revision"]) == 40


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
        circulant = Run.of(compose_run(["model=tiny_vit"])).asked
        full = Run.of(compose_run(["model=tiny_vit", "structure=full"])).asked
        given = Run.of(compose_run(["model=tiny_vit", "optim.lr=0.7"])).asked
    assert circulant["optim"]["lr"] == 0.0123
    assert full["optim"]["lr"] == 1e-4
    assert given["optim"]["lr"] == 0.7


def test_a_rate_of_the_head_stands_in_the_question_where_it_is_given() -> None:
    assert "head_lr" not in ask("model=tiny_vit")["optim"]
    assert ask("model=tiny_vit", "optim.head_lr=0.5")["optim"]["head_lr"] == 0.5
    assert sign("model=tiny_vit", "optim.head_lr=0.5") != sign("model=tiny_vit")


def test_dropout_of_the_model_stands_in_the_question_where_it_is_given_and_the_search_never_does() -> None:
    assert "dropout" not in ask()["model"]
    assert ask("model.dropout=0")["model"]["dropout"] == 0
    assert sign("model.dropout=0") != BASE
    assert sign("optim.lr=0.1", "search.by=run", "search.values=7") == sign("optim.lr=0.1")


@pytest.mark.parametrize(
    ("model", "dataset", "expected"),
    [("vit_b16", "vtab/svhn", 5e-4), ("clip_vit_b16", "vtab/pets", 5e-5), ("tiny_vit", "vtab/svhn", 3e-3)],
)
def test_the_paper_s_rates_hold_for_its_own_backbones(model: str, dataset: str, expected: float) -> None:
    config = RunConfig(ModelConfig(name=model), DatasetConfig(name=dataset))
    rate, source = rates.default_rate(config)
    assert rate == expected
    assert ("paper's (B.1)" in source) == (model != "tiny_vit")


def test_every_method_s_options_are_in_one_schema_that_workers_can_be_sent() -> None:
    config = RunConfig()
    config.structure.terms = 3
    assert pickle.loads(pickle.dumps(config)) == config
    for method in METHODS.values():
        assert method.options.keys() <= vars(config.structure).keys()
