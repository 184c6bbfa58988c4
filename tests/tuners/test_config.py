import pytest
from peft import PeftConfig, PeftType

from surm import SurmConfig

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
    "bias": "surm_only",
    "init_weights": "authors",
    "fused_parts": ["q", "v"],
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
        (BOTTLENECK | {"structure_options": {"rank": 4}}, "'rank': 4. is not possible; give one option, size"),
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
