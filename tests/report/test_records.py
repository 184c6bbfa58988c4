import json
from collections import Counter

import numpy as np
import pytest
from matplotlib.markers import MarkerStyle

from surm.methods.names import METHODS, label, style_of
from surm.records.record import read_records
from surm.report.gather import gather
from surm.report.plan import ComparisonPlan
from tests.report import made_up


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ({"name": "lora", "rank": 1, "alpha": 1.0, "dropout": 0.0}, "LoRA r=1"),
        ({"name": "bitfit"}, "BitFit"),
        ({"name": "linear_probe"}, "linear probe"),
        ({"name": "full"}, "full fine-tuning"),
        ({"name": "circulant", "parametrization": "product", "terms": 1, "init_weights": "default"}, "circulant"),
        ({"name": "circulant", "parametrization": "direct", "terms": 2}, "circulant, direct, 2 terms"),
        ({"name": "toeplitz", "symmetric": True, "factors": 2, "terms": 1}, "Toeplitz"),
        ({"name": "toeplitz", "symmetric": False, "factors": 1, "terms": 1}, "Toeplitz, general, one factor"),
        ({"name": "kronecker", "factor_shape": [16, 48], "terms": 1}, "Kronecker"),
        ({"name": "ldr", "terms": 1}, "ldr, 1 term"),
        ({"name": "ldr", "terms": 4, "alpha": 2.0, "dropout": 0.1}, "ldr, 4 terms, alpha 2, dropout 0.1"),
        ({"name": "low_rank", "rank": 2, "init_weights": "authors"}, "low rank r=2, authors' start"),
        ({"name": "circulant+skew_circulant", "terms": 1}, "circulant + skew-circulant"),
        ({"name": "block_low_rank", "blocks": 8, "rank": 1}, "MELoRA r=1, 8 blocks"),
        ({"name": "lora_mini", "rank": 8, "outer": [48, 40], "outer_seed": 0}, "LoRA-Mini r=8, a=48, b=40"),
        ({"name": "lora_mini", "rank": 8, "outer": [8, 8], "outer_seed": 2}, "LoRA-Mini r=8, a=8, b=8, outer seed 2"),
        ({"name": "lora_xs", "rank": 16, "save_bases": True}, "LoRA-XS r=16"),
        ({"name": "bottleneck", "size": 16, "dropout": 0.0}, "bottleneck, size 16"),
        ({"name": "lora_fa", "rank": 1, "alpha": 1.0, "dropout": 0.0}, "LoRA-FA r=1"),
        ({"name": "attention_tuning"}, "attention only"),
        ({"name": "layernorm_tuning"}, "LayerNorm tuning"),
        ({"name": "peft_dora", "arguments": {"use_dora": True, "r": 1}}, "DoRA, r=1"),
        ({"name": "peft_adalora", "arguments": {"target_r": 1, "init_r": 2}}, "AdaLoRA, init_r=2, target_r=1"),
        ({"name": "peft_vera", "arguments": {}}, "VeRA"),
        ({"name": "peft_lokr", "arguments": {"target_modules": ["q"]}}, "LoKr"),
        ({"name": "peft_c3a", "arguments": {"block_size": 384}}, "C3A, block_size=384"),
        ({"name": "peft_boft"}, "BOFT"),
        ({"name": "peft_odd"}, "ODD"),
    ],
)
def test_label(structure, expected):
    assert label(made_up.asked(structure)) == expected


def test_label_names_an_unusual_placement():
    request = made_up.asked({"name": "bitfit"}) | {"placement": {"form": "weight", "parts": ["q", "v"]}}
    assert label(request) == "BitFit (q, v)"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["q", "k", "v"], "circulant"),
        (["q", "k", "v", "o"], "circulant (q, k, v, o)"),
        (["q", "k", "v", "o", "mlp"], "circulant (all linear)"),
    ],
)
def test_label_names_the_adapted_weights(parts, expected):
    placement = {"form": "weight", "parts": parts}
    assert label(made_up.asked({"name": "circulant"}) | {"placement": placement}) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "circulant, Houlsby adapter"),
        ({"sites": "pfeiffer", "adapter_bias": False}, "circulant, Pfeiffer adapter, no bias"),
        ({"activation": "silu", "position": "before"}, "circulant, Houlsby adapter, silu, before dropout"),
    ],
)
def test_label_names_the_form_of_an_adapter(changes, expected):
    usual = {"form": "adapter", "sites": "houlsby", "adapter_bias": True, "activation": "gelu", "position": "after"}
    assert label(made_up.asked({"name": "circulant"}) | {"placement": usual | changes}) == expected


def test_every_method_is_known_by_its_mark_alone():
    """Lines and letters have no inside, so that filling tells nothing of them."""
    styles = [*METHODS.values(), style_of("of another name")]
    seen = [(style.marker, style.filled and style.marker in MarkerStyle.filled_markers) for style in styles]
    assert [mark for mark, times in Counter(seen).items() if times > 1] == []
    for mark, _ in seen:
        MarkerStyle(mark)  # matplotlib refuses what it does not know


def test_label_without_placement():
    request = made_up.asked({"name": "full"})
    del request["placement"]
    assert label(request) == "full fine-tuning"


@pytest.mark.parametrize("published", [False, True])
def test_both_layouts_are_read(tmp_path, published):
    labels = np.array([3, 1, 4, 1])
    request = made_up.asked({"name": "full"}, seed=7)
    signature = made_up.write_run(tmp_path, request, labels, np.array([1, 1, 0, 1], bool), published=published)

    record = read_records(tmp_path)[signature]
    assert (record.seed, record.metric, record.score) == (7, "accuracy", 75.0)
    assert record.best_epoch_score == pytest.approx(75.5)
    np.testing.assert_array_equal(record.evaluation.labels == record.evaluation.predictions, [True, True, False, True])


def test_a_missing_folder_has_no_records(tmp_path):
    assert read_records(tmp_path / "nowhere") == {}


def test_further_seeds_of_the_same_request_join_and_other_requests_do_not(tmp_path):
    planned = made_up.write_experiment(tmp_path, {"circulant": 0.9}, seeds=2)
    made_up.write_experiment(tmp_path, {"circulant": 0.9}, seeds=4)
    made_up.write_experiment(tmp_path, {"circulant": 0.9}, seeds=2, lr=0.001)
    experiment = gather(ComparisonPlan("e", "E", planned), read_records(tmp_path))
    (method,) = experiment.methods
    assert [run.seed for run in method.finished] == [0, 1, 2, 3]
    assert {run.asked["optim"]["lr"] for run in method.finished} == {0.003}


def test_tuning_records_stay_out(tmp_path):
    planned = made_up.write_experiment(tmp_path, {"circulant": 0.9}, seeds=2)
    request = json.loads((tmp_path / planned[0] / "record.json").read_text())["asked"]
    request["dataset"]["evaluate_on"] = "selection"
    made_up.write_run(tmp_path, request | {"seed": 9}, np.arange(10), np.ones(10, bool))
    experiment = gather(ComparisonPlan("e", "E", planned), read_records(tmp_path))
    assert [run.seed for run in experiment.methods[0].finished] == [0, 1]


def test_methods_of_one_name_are_told_apart_by_their_rate(tmp_path):
    planned = [
        signature
        for lr in (0.001, 0.003)
        for signature in made_up.write_experiment(tmp_path, {"circulant": 0.9}, seeds=1, lr=lr)
    ]
    experiment = gather(ComparisonPlan("e", "E", planned), read_records(tmp_path))
    assert [method.name for method in experiment.methods] == ["circulant, lr 0.001", "circulant, lr 0.003"]


def test_a_plan_over_two_data_sets_is_refused(tmp_path):
    planned = made_up.write_experiment(tmp_path, {"circulant": 0.9}, seeds=1)
    planned += made_up.write_experiment(tmp_path, {"circulant": 0.9}, seeds=1, dataset="mnist5k")
    with pytest.raises(
        ValueError, match=r"mixes builtin_vit on digits, builtin_vit on mnist5k: give one plan for each"
    ):
        gather(ComparisonPlan("e", "E", planned), read_records(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"signature": "', "no JSON from line 1"),
        (b"", "no JSON from line 1"),
        (b"\xff\xfe\x00", "no text"),
        (b"[1, 2]", "it is no JSON object"),
        (b'{"signature": "x", "status": "finished", "asked": {}, "happened": {}}', "where is missing"),
        (
            b'{"signature": "x", "status": "finished", "asked": 1, "happened": {}, "where": {}}',
            "asked is no JSON object",
        ),
    ],
)
def test_a_damaged_file_is_left_out_and_named(tmp_path, content, reason):
    good = made_up.write_run(tmp_path, made_up.asked({"name": "full"}), np.arange(9), np.ones(9, bool))
    damaged = tmp_path / "damaged" / "record.json"
    damaged.parent.mkdir()
    damaged.write_bytes(content)
    records = read_records(tmp_path)
    assert list(records) == [good]
    assert records.damaged == {damaged: reason}
    (sentence,) = records.complaints
    assert sentence.startswith(f"{damaged} is left out")


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {}},
        {"metrics": {"accuracy": None}},
        {"metrics": {"accuracy": float("nan")}},
        {"trainable_parameters": "many"},
        {"best_epoch_metrics": None},
    ],
)
def test_a_finished_run_without_its_numbers_is_damaged(tmp_path, change):
    request = made_up.asked({"name": "full"})
    signature = made_up.write_run(tmp_path, request, np.arange(9), np.ones(9, bool), **change)
    records = read_records(tmp_path)
    assert records == {}
    assert list(records.damaged) == [tmp_path / signature / "record.json"]


@pytest.mark.parametrize(
    "content", ["[1,", '{"labels": [1, 2], "predictions": [1]}', '{"labels": [1]}', '{"labels": 3}']
)
def test_damaged_predictions_leave_the_score_and_are_named(tmp_path, content):
    request = made_up.asked({"name": "full"})
    signature = made_up.write_run(tmp_path, request, np.arange(10), np.arange(10) < 9)
    (tmp_path / signature / "predictions.json").write_text(content)
    record = read_records(tmp_path)[signature]
    assert (record.score, record.evaluation) == (90.0, None)
    assert record.damage.startswith(f"{tmp_path / signature / 'predictions.json'} is damaged")


def test_of_two_folders_the_later_one_counts(tmp_path):
    request = made_up.asked({"name": "full"})
    for folder, right in (("first", 5), ("second", 9)):
        made_up.write_run(tmp_path / folder, request, np.arange(10), np.arange(10) < right)
    (record,) = read_records(tmp_path / "first", tmp_path / "second").values()
    assert record.score == 90.0
