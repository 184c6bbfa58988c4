import copy
import dataclasses
import inspect
import pickle

import pytest
from peft import LoraConfig, PeftConfig, PeftType

from surm import SurmConfig
from surm.tuners.saving import OLD_PEFT

BOTTLENECK = {"form": "adapter", "structure": "bottleneck"}

WEIGHT = {
    "structure": "kronecker",
    "structure_options": {"factor_shape": (4, 6), "terms": 2},
    "target_modules": ["query", "value"],
    "exclude_modules": ["0.query"],
    "layers_to_transform": [0, 2],
    "layers_pattern": "layer",
    "modules_to_save": ["classifier"],
    "alpha": 0.5,
    "dropout": 0.1,
    "bias": "none" if OLD_PEFT else "surm_only",
    "init_weights": "authors",
    "fused_parts": ["q", "v"],
    "structure_pattern": {"value": "circulant", "0.query": {"structure": "ldr", "structure_options": {"terms": 2}}},
    "alpha_pattern": {"value": 0.25},
    "fused": {"qkv": {"q": 8, "k": 4, "v": 4}, "kv": 2, "gates": [8, 8, 16, 16]},
    "keep_base_weight": True,
    "trainable_token_indices": {"embed_tokens": [0, 3]},
    "ensure_weight_tying": True,
}
ADAPTER = {
    "form": "adapter",
    "target_modules": "pfeiffer",
    "layers_to_transform": [1],
    "adapter_bias": False,
    "adapter_activation": "silu",
    "adapter_position": "before",
    "adapter_width": 768,
}


@pytest.mark.parametrize("settings", [WEIGHT, ADAPTER, BOTTLENECK | {"structure_options": {"size": 8}}])
def test_a_saved_configuration_loads_equal(tmp_path, settings):
    config = SurmConfig(**settings)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is SurmConfig
    assert loaded == config
    assert loaded.peft_type is PeftType.SURM
    assert loaded.to_dict() == config.to_dict()
    assert dataclasses.replace(config) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("index", [0, [0]])
def test_the_first_block_can_be_selected(index):
    assert SurmConfig(target_modules=["query"], layers_to_transform=index).layers_to_transform == index


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"structure": "circulnt"}, "circulnt.*nearest: circulant"),
        ({"structure": "circulant+toplitz"}, "toplitz.*nearest: toeplitz"),
        ({"structure": 3}, "structure=3 is not a name"),
        ({"structure_options": [1]}, r"structure_options=\[1\] is not a dictionary"),
        ({"structure_options": {"terms": {1}}}, "terms.*JSON"),
        ({"structure_options": {"rank": 2}}, "circulant has no option 'rank'.*parametrization, terms"),
        ({"structure": "ldr", "structure_options": {"terms": 0}}, "terms=0 is not possible.*at least 1"),
        ({"structure": "kronecker", "structure_options": {"factor_shape": [5]}}, "factor_shape=.5. is not possible"),
        ({"form": "wieght"}, "form='wieght' is not available: give weight or adapter"),
        ({"form": "adapter", "alpha": 0.5}, "alpha=0.5 is used in weight form only: leave it at 1.0"),
        ({"form": "adapter", "fused_parts": ["q"]}, "fused_parts=.'q'. is used in weight form only"),
        ({"form": "adapter", "adapter_bias": 1}, "adapter_bias=1 is neither True nor False"),
        ({"form": "adapter", "adapter_activation": "relu"}, "'relu' is not possible: give gelu, .* never moves"),
        ({"form": "adapter", "adapter_position": "behind"}, "'behind' is not known: give after or before"),
        ({"form": "adapter", "adapter_width": 0}, "adapter_width=0 is no width"),
        ({"adapter_bias": False}, "adapter_bias=False is used in adapter form only: give form='adapter'"),
        ({"target_modules": "houlsby"}, "target_modules='houlsby' is for adapters: give form='adapter'"),
        ({"structure": "bottleneck"}, "structure='bottleneck' is no update of a weight.*give form='adapter'"),
        (BOTTLENECK | {"structure_options": {"size": 0}}, "bottleneck: structure_options=.'size': 0. is not possible"),
        (BOTTLENECK | {"structure_options": {"rank": 4}}, "'rank': 4. is not possible; give size, an integer"),
        (BOTTLENECK | {"init_weights": "authors"}, "init_weights='authors' is not possible.*has no bottleneck"),
        ({"alpha": float("nan")}, "alpha=nan is not a finite number"),
        ({"alpha": float("inf")}, "alpha=inf is not a finite number"),
        ({"alpha": "1"}, "alpha='1' is not a finite number"),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability"),
        ({"dropout": -0.1}, "dropout=-0.1 is not a probability"),
        ({"bias": "lora_only"}, "bias='lora_only' is not known.*surm_only"),
        ({"init_weights": "gaussian"}, "init_weights='gaussian' is not known.*'authors'"),
        ({"init_weights": 1}, "init_weights=1 is not known"),
        ({"fused_parts": []}, r"fused_parts=\[\] is not a selection of q, k, v"),
        ({"fused_parts": ["v", "q"]}, "fused_parts=.'v', 'q'. is not .* in this order"),
        ({"fused_parts": ["q", "q"]}, "each once"),
        ({"fused_parts": ["q", "x"]}, "fused_parts=.'q', 'x'. is not a selection"),
        ({"fused_parts": "qv"}, "fused_parts='qv' is not a selection"),
        ({"fused": [3]}, "fused=.3. is not a dictionary by module names"),
        ({"fused": {"(": 3}}, r"fused: '\(' is no regular expression"),
        ({"fused": {"qkv": 0}}, "fused: 0 for 'qkv' is no split"),
        ({"fused": {"qkv": []}}, r"fused: \[\] for 'qkv' is no split"),
        ({"fused": {"qkv": [4, 0]}}, "integers of at least 1"),
        ({"fused": {"qkv": {"update": 4, "k": 4}}}, "names of .* other than update"),
        ({"fused": {"qkv": {"q.k": 4, "v": 4}}}, "names of letters"),
        ({"fused": {"qkv": [["q", 4], ["q", 4]]}}, "is no split"),
        ({"structure_pattern": ["query"]}, "structure_pattern=.'query'. is not a dictionary"),
        ({"structure_pattern": {"query": "circulnt"}}, "nearest: circulant"),
        ({"structure_pattern": {"query": {"structure": "ldr", "structure_options": {"terms": 0}}}}, "terms=0"),
        ({"structure_pattern": {"query": {"terms": 2}}}, "'query' is not possible: give a name, or a dictionary"),
        ({"structure_pattern": {"query": "bottleneck"}}, "structure='bottleneck' is no update"),
        ({"structure_pattern": {"query": {1}}}, "structure_pattern=.* JSON"),
        ({"alpha_pattern": {"query": float("nan")}}, "alpha=nan is not a finite number"),
        ({"form": "adapter", "alpha_pattern": {"query": 2.0}}, "alpha_pattern=.* is used in weight form only"),
        ({"form": "adapter", "fused": {"qkv": 3}}, "fused=.* is used in weight form only: leave it at None"),
        ({"form": "adapter", "keep_base_weight": True}, "keep_base_weight=True is used in weight form only"),
        ({"keep_base_weight": 1}, "keep_base_weight=1 is neither True nor False"),
        ({"inference_mode": "no"}, "inference_mode='no' is neither True nor False"),
        ({"ensure_weight_tying": None}, "ensure_weight_tying=None is neither True nor False"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices=.-1. is no selection of tokens"),
        ({"trainable_token_indices": {"embed_tokens": 3}}, "dictionary of such lists by layer name"),
        ({"target_modules": "(query"}, r"target_modules='\(query' is no regular expression"),
        ({"target_modules": ["query", 3]}, "target_modules=.* is no selection of modules"),
        ({"exclude_modules": 3}, "exclude_modules=3 is no selection of modules"),
        ({"modules_to_save": "classifier"}, "modules_to_save='classifier' is no list of names"),
        ({"layers_to_transform": -1}, "layers_to_transform=-1 is no block index"),
        ({"layers_to_transform": [1, "2"]}, "layers_to_transform=.* is no block index"),
        ({"layers_to_transform": 0, "target_modules": ".*query"}, "layers_to_transform cannot be used"),
        ({"layers_pattern": "layer", "target_modules": ["query"]}, "layers_pattern is used with layers_to_transform"),
        ({"task_type": "SEQ"}, "Invalid task type: 'SEQ'"),
    ],
)
def test_an_impossible_value_is_refused_in_one_sentence(settings, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        SurmConfig(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("structure", ["kronecker", "kronecker+circulant"])
def test_a_factor_shape_is_accepted_before_the_layer_is_known(structure):
    config = SurmConfig(structure=structure, structure_options={"factor_shape": [32, 24]})
    assert config.structure_options == {"factor_shape": [32, 24]}


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("r", 8, "structure_options"),
        ("lora_alpha", 16, "give alpha"),
        ("lora_dropout", 0.1, "give dropout"),
        ("init_lora_weights", True, "give init_weights"),
        ("rank_pattern", {"query": 4}, "give structure_pattern"),
        ("use_rslora", True, "give alpha"),
        ("target_parameters", ["experts.weight"], "name linear layers in target_modules"),
        ("use_dora", True, "leave it out, or use LoraConfig"),
    ],
)
def test_an_option_of_lora_alone_is_refused_with_what_to_give_instead(option, value, instead):
    with pytest.raises(
        TypeError, match=f"{option}=.* is an option of LoRA that SURM does not have: .*{instead}"
    ) as error:
        SurmConfig(**{option: value})
    assert "\n" not in str(error.value)


def test_every_option_of_lora_is_taken_or_refused_by_name():
    for option in LoraConfig.__dataclass_fields__.keys() - SurmConfig.__dataclass_fields__.keys():
        with pytest.raises(TypeError, match=f"^{option}=None is an option of LoRA"):
            SurmConfig(**{option: None})


def test_an_option_of_a_newer_version_is_left_to_peft(tmp_path):
    SurmConfig().save_pretrained(tmp_path)
    saved = tmp_path / "adapter_config.json"
    saved.write_text(saved.read_text().replace('"alpha": 1.0', '"alpha": 1.0, "adapter_colour": "blue"'))
    with pytest.warns(UserWarning, match="adapter_colour"):
        assert PeftConfig.from_pretrained(tmp_path) == SurmConfig()
    assert {"structure", "alpha_pattern", "fused"} <= inspect.signature(SurmConfig).parameters.keys()


QUERY, VALUE = "encoder.layer.1.attention.query", "encoder.layer.1.attention.value"


def test_patterns_are_resolved_for_each_module():
    config = SurmConfig(
        structure="kronecker",
        structure_options={"terms": 2},
        alpha=0.5,
        structure_pattern={r"0\..*": "toeplitz", "query": {"structure": "ldr", "structure_options": {"terms": 4}}},
        alpha_pattern={"value": 2.0},
        dropout=0.1,
    )
    query, value = config.for_module(QUERY), config.for_module(VALUE)
    assert (query.structure, query.structure_options, query.alpha) == ("ldr", {"terms": 4}, 0.5)
    assert (value.structure, value.structure_options, value.alpha) == ("kronecker", {"terms": 2}, 2.0)
    assert config.for_module(VALUE.replace("1", "0")).structure == "toeplitz"
    assert config.for_module(VALUE.replace("1", "0")).structure_options is None
    assert query.dropout == value.dropout == 0.1
    assert query.for_module(QUERY) is query
    assert config.for_module("key") is config
    assert config.structure == "kronecker"


@pytest.mark.parametrize("name", ["my_query", "query.dense", "queryx"])
def test_a_pattern_matches_whole_parts_of_a_name(name):
    config = SurmConfig(structure_pattern={"query": "ldr"})
    assert config.for_module(name) is config


@pytest.mark.parametrize("keys", [["query", "1.attention.query"], ["1.attention.query", "query"]])
def test_the_longest_of_several_patterns_counts_before_and_after_saving(tmp_path, keys):
    alphas = {"query": 2.0, "1.attention.query": 3.0}
    config = SurmConfig(alpha_pattern={key: alphas[key] for key in keys})
    config.save_pretrained(tmp_path)
    for each in (config, PeftConfig.from_pretrained(tmp_path)):
        assert each.for_module(QUERY).alpha == 3.0
        assert each.for_module(QUERY.replace("1", "2")).alpha == 2.0


def test_the_parts_of_a_split_can_be_selected():
    fused = {"kv": 2, "gate_up": {"gate": 4, "up": 4}}
    assert SurmConfig(fused=fused, fused_parts=["v", "1", "up"]).fused_parts == ["v", "1", "up"]
    with pytest.raises(ValueError, match="not a selection of q, k, v, 0, 1, gate, up"):
        SurmConfig(fused=fused, fused_parts=["down"])
