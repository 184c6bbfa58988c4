"""The advisor's command: what it prints and writes, and how it refuses."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from surm.advice import advise_task, compose_advice
from surm.config import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = ["model=tiny_vit", "advise.batches=2", "advise.batch_size=8"]

Script = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    def start(*settings: str) -> None:
        monkeypatch.setattr(sys, "argv", ["advise.py", *settings])
        runpy.run_path(str(REPOSITORY / "scripts" / "advise.py"), run_name="__main__")

    return start


def test_it_prints_table_recommendation_and_trust(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(*TINY, f"output_dir={tmp_path}", "advise.structures=[circulant,low_rank]", "advise.by_layer=true")
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "advice" / "tiny_vit_digits.json").read_text())
    assert len(stored["scores"]) == 2 * 2 * 3  # families, layers, parts
    for total in stored["totals"]:
        assert f"| {total['family']} | {total['parameters']:,} | {100 * total['captured']:.2f} |" in printed
    assert "| blocks.1.attn.qkv.v_proj |" in printed
    assert stored["recommendation"] in printed
    assert "How far to trust it" in printed
    assert (tmp_path / "advice" / "tiny_vit_digits.png").read_bytes()[:4] == b"\x89PNG"


def test_the_placement_chooses_the_matrices() -> None:
    advice = advise_task(compose_advice([*TINY, "placement=weight_qv", "advise.structures=[circulant]"]))
    assert [score.layer for score in advice.scores] == [
        f"blocks.{layer}.attn.qkv.{part}_proj" for layer in range(2) for part in "qv"
    ]
    first = advise_task(compose_advice([*TINY, "advise.structures=[circulant]"]), layers=1)
    assert [score.layer for score in first.scores] == [f"blocks.0.attn.qkv.{part}_proj" for part in "qkv"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["advise.structures=[circulent]"], "advise.structures=circulent: .* did you mean circulant?"),
        (["advise.structures=[]"], r"advise.structures=\[\]: give one or more of circulant"),
        (["advise.update=hessian"], "advise.update=hessian: allowed are gradient, finetune"),
        (["advise.batches=0"], "advise.batches=0: give a number above 0"),
        (["advise.batchs=3"], "there is no setting advise.batchs; .* did you mean batches?"),
        (["model=builtin_bert", "dataset=digits"], "the model takes text, the dataset gives image"),
        (["model=builtin_brt"], "model=builtin_brt: .* did you mean builtin_bert?"),
        (["--multirun"], "--multirun: this command has settings only"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        compose_advice(settings)
    with pytest.raises(SystemExit, match=r"^Error: [^\n]*$"):
        script(*settings)
    assert list(tmp_path.iterdir()) == []
