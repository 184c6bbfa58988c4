"""Weight analysis of tiny runs against dense float64 NumPy, and what it says when weights are missing."""

import json
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.numpy import load_file

from surm.config.compose import compose_run, composer
from surm.config.run import Run
from surm.data import load_task
from surm.data.encode import encode
from surm.models import load_backbone
from surm.records.record import read_records
from surm.records.recorded import signature
from surm.records.storage import write_json
from surm.shared.errors import ConfigError, RecordError
from surm.shared.paths import PUBLISHED
from surm.studies.weights import EXAMPLES, analyse, cka, full_run, thinned, train_command
from surm.training.run import execute
from tests.tools.skips import needs

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH = 48  # of tiny_vit
STEPS = ["trainer.max_steps=6", "trainer.batch_size=16", "optim.lr=0.01"]


def train(folder: Path, *overrides: str) -> str:
    with composer():
        config = replace(compose_run(list(overrides)), output_dir=str(folder))
    return execute(Run.of(config), say=lambda line: None).signature


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def runs(outputs: Path) -> dict[str, str]:
    """Signatures of tiny runs, among them the full fine-tuning run that `full_run` asks for."""
    found = {
        "circulant": train(outputs, *STEPS, "model=tiny_vit", "structure=circulant", "structure.alpha=2"),
        "lora": train(outputs, *STEPS, "model=tiny_vit", "structure=lora", "structure.rank=2", "placement=weight_qv"),
        "bitfit": train(outputs, *STEPS, "model=tiny_vit", "structure=bitfit"),
    }
    question = json.loads((outputs / "runs" / found["circulant"] / "record.json").read_text())["asked"]
    overrides = shlex.split(train_command(full_run(question)))[2:]
    return found | {"full": train(outputs, *overrides)}


def base_weight(layer: int, part: str) -> np.ndarray:
    state = load_backbone("tiny_vit", num_labels=10).module.state_dict()
    fused = state[f"blocks.{layer}.attn.qkv.weight"].double().numpy()
    return fused.reshape(3, WIDTH, WIDTH)["qkv".index(part)]


def row(found: dict[str, Any], layer: int, part: str) -> dict[str, Any]:
    return next(row for row in found["rows"] if (row["layer"], row["part"]) == (layer + 1, part))


def check_against_numpy(row: dict[str, Any], W: np.ndarray, update: np.ndarray) -> None:
    cosine = np.sum((W + update) * W) / np.linalg.norm(W + update) / np.linalg.norm(W)
    values = np.linalg.svd(update, compute_uv=False)
    assert row["one_minus_cosine"] == pytest.approx(1 - cosine, rel=1e-5)
    assert row["relative_norm"] == pytest.approx(np.linalg.norm(update) / np.linalg.norm(W), rel=1e-5)
    assert row["rank"] == np.linalg.matrix_rank(update)
    assert row["stable_rank"] == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-5)
    places = row["singular_values"]["index"]
    np.testing.assert_allclose(row["singular_values"]["value"], values[np.array(places) - 1], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(("layer", "part"), [(0, "q"), (1, "k"), (1, "v")])
def test_a_circulant_update_in_a_fused_layer(outputs: Path, runs: dict[str, str], layer: int, part: str) -> None:
    found = analyse(runs["circulant"], outputs)
    stored = load_file(outputs / "runs" / runs["circulant"] / "adapter" / "adapter_model.safetensors")
    prefix = f"base_model.model.blocks.{layer}.attn.qkv.surm_{part}"
    generator = np.sum(stored[f"{prefix}.r1"].astype(float) * stored[f"{prefix}.r2"].astype(float), axis=0)
    check_against_numpy(row(found, layer, part), base_weight(layer, part), 2 * scipy.linalg.circulant(generator))
    assert row(found, layer, part)["largest_rank"] == WIDTH
    assert len(found["rows"]) == 2 * 3


def test_a_lora_update_has_the_parts_and_the_rank_that_were_asked_for(outputs: Path, runs: dict[str, str]) -> None:
    found = analyse(runs["lora"], outputs, say=lambda line: None)
    stored = load_file(outputs / "runs" / runs["lora"] / "adapter" / "adapter_model.safetensors")
    prefix = "base_model.model.blocks.1.attn.qkv.v_proj"
    B, A = (stored[f"{prefix}.lora_{factor}.weight"].astype(float) for factor in "BA")
    check_against_numpy(row(found, 1, "v"), base_weight(1, "v"), B @ A / 2)  # alpha 1 over rank 2
    assert {(row["part"], row["rank"], row["largest_rank"]) for row in found["rows"]} == {("q", 2, 2), ("v", 2, 2)}


def test_full_fine_tuning_and_the_cka_with_it(outputs: Path, runs: dict[str, str]) -> None:
    found = analyse(runs["full"], outputs)
    stored = load_file(outputs / "runs" / runs["full"] / "trained.safetensors")
    trained = stored["blocks.0.attn.qkv.weight"].astype(float)[:WIDTH]
    check_against_numpy(row(found, 0, "q"), base_weight(0, "q"), trained - base_weight(0, "q"))
    assert {row["cka"] for row in found["rows"]} == {1.0}

    backbone = load_backbone("tiny_vit", num_labels=10)
    split = encode(load_task("digits").evaluation, backbone)
    images = torch.stack([split[i]["x"] for i in range(EXAMPLES)])

    def queries() -> np.ndarray:
        seen: list[torch.Tensor] = []
        handle = backbone.module.blocks[0].attn.qkv.register_forward_hook(lambda *call: seen.append(call[2]))
        with torch.no_grad():
            backbone.module.eval()(images)
        handle.remove()
        return seen[0][..., :WIDTH].reshape(-1, WIDTH).double().numpy()

    before = queries()
    backbone.module.load_state_dict({name: torch.from_numpy(array) for name, array in stored.items()})
    expected = kernel_cka(before[::7], queries()[::7])
    circulant = row(analyse(runs["circulant"], outputs), 0, "q")
    assert circulant["cka_before"] == pytest.approx(expected, abs=2e-2)  # a seventh of the tokens
    assert 0 < circulant["cka"] < 1


def kernel_cka(X: np.ndarray, Y: np.ndarray) -> float:
    """CKA by its definition, with the N x N kernels."""
    H = np.eye(len(X)) - 1 / len(X)
    K, L = H @ X @ X.T @ H, H @ Y @ Y.T @ H
    return float(np.sum(K * L) / np.linalg.norm(K) / np.linalg.norm(L))


def test_linear_cka_is_the_kernels_alignment() -> None:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((40, 5)) + 3
    Y = X @ generator.standard_normal((5, 7)) + generator.standard_normal((40, 7))
    assert cka(torch.from_numpy(X), torch.from_numpy(Y)) == pytest.approx(kernel_cka(X, Y), rel=1e-10)


def test_a_spectrum_is_thinned_to_its_first_and_last_values() -> None:
    assert thinned(1) == [1]
    assert thinned(48) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]


@needs("valence")
def test_padding_is_no_token(outputs: Path) -> None:
    name = train(outputs, *STEPS, "model=tiny_bert", "dataset=valence", "structure=toeplitz")
    said: list[str] = []
    found = analyse(name, outputs, say=said.append)
    stored = load_file(outputs / "runs" / name / "adapter" / "adapter_model.safetensors")
    prefix = "base_model.model.bert.encoder.layer.0.attention.self.key.surm_update"
    first, second = (scipy.linalg.toeplitz(stored[f"{prefix}.{t}"][0].astype(float)) for t in ("t1", "t2"))
    state = load_backbone("tiny_bert", num_labels=2).module.state_dict()
    W = state["bert.encoder.layer.0.attention.self.key.weight"].double().numpy()
    check_against_numpy(row(found, 0, "k"), W, first @ second)

    assert found["full_run"] is None
    assert {row["cka"] for row in found["rows"]} == {None}
    full = full_run(found["asked"])
    assert said == [
        f"CKA is left out: the full fine-tuning run {signature(full)} to compare with is not in "
        f"{outputs / 'runs' / signature(full)}; `{train_command(full, outputs)}` makes it."
    ]


# --- sentences -------------------------------------------------------------------------------------------------------


def test_missing_weights_name_the_command_that_repeats_the_run(
    outputs: Path, runs: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / runs["lora"]
    shutil.copytree(outputs / "runs" / runs["lora"], folder, ignore=shutil.ignore_patterns("adapter"))
    with pytest.raises(RecordError, match="repeat it with") as caught:
        analyse(runs["lora"], tmp_path)
    command = str(caught.value).split("`")[1]
    words = shlex.split(command)
    assert words[:2] == ["python", "scripts/train.py"]
    assert words[-1] == f"output_dir={tmp_path}"
    with composer():
        assert signature(Run.of(compose_run(words[2:])).asked) == runs["lora"]


RECORDS = read_records(PUBLISHED)
RUNS = sorted(name for name, record in RECORDS.items() if not record.is_study)


@pytest.mark.parametrize("name", RUNS[::25])
def test_the_command_of_a_published_run_asks_the_same_question(name: str) -> None:
    words = shlex.split(train_command(RECORDS[name].asked))[2:]
    with composer():
        assert signature(Run.of(compose_run(words)).asked) == name


def test_what_cannot_be_analysed_is_one_sentence(outputs: Path, runs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run=0123456789ab: there is no such run"):
        analyse("0123456789ab", outputs)
    with pytest.raises(ConfigError, match="there is no such run"):
        analyse(min(RECORDS.keys() - set(RUNS)), outputs)  # a part of a study
    with pytest.raises(ConfigError, match="bitfit updates no query, key or value matrix"):
        analyse(runs["bitfit"], outputs)
    record = json.loads((outputs / "runs" / runs["lora"] / "record.json").read_text())
    write_json(tmp_path / "runs" / runs["lora"] / "record.json", record | {"status": "interrupted"})
    with pytest.raises(RecordError, match=r"is interrupted: finish it with `python scripts/train\.py model=tiny_vit"):
        analyse(runs["lora"], tmp_path)


def test_the_script_writes_analysis_table_and_figure(
    outputs: Path,
    runs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def script(*settings: str) -> None:
        monkeypatch.setattr(sys, "argv", ["analyse.py", *settings])
        runpy.run_path(str(REPOSITORY / "scripts" / "analyse.py"), run_name="__main__")

    script(f"run={runs['circulant']},{runs['lora']}", f"output_dir={outputs}", f"to={tmp_path}")
    assert "circulant, alpha 2 on tiny_vit on digits, seed 0" in capsys.readouterr().out
    for name in (f"analysis/{runs['lora']}.json", "tables/weight_analysis.csv", "figures/weight_analysis.png"):
        assert (tmp_path / name).stat().st_size > 100
    table = (tmp_path / "tables" / "weight_analysis.md").read_text()
    assert table.count("| tiny_vit on digits |") == 3 + 2

    with pytest.raises(
        SystemExit, match="Error: runs=1: settings are written as key=value, and are run, output_dir, to"
    ):
        script("runs=1")
    with pytest.raises(SystemExit, match="Error: give run=<signature>"):
        script()
