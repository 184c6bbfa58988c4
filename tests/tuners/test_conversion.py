"""Conversion to LoRA."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from surm import SurmConfig
from surm.tuners import conversion_error
from tests.tuners.helpers import IMAGES, TWO, X, adapt, dense, net, tiny_vit

convert_to_lora = pytest.importorskip("peft.tuners.lora.conversion", reason="this peft has no conversion to LoRA")


def converted(model, base, rank, **settings):
    config, weights = convert_to_lora.convert_to_lora(model, rank, **settings)
    lora = get_peft_model(base, config)
    loaded = set_peft_model_state_dict(lora, weights)
    assert not loaded.unexpected_keys
    return lora.eval()


@pytest.mark.parametrize("structure", ["circulant", "toeplitz", "kronecker", "ldr", "low_rank"])
def test_a_full_rank_conversion_gives_the_same_output(structure):
    model = adapt(net(), structure=structure, target_modules=TWO, init_weights=False, alpha=3.0)
    assert model.supports_lora_conversion()
    # LoRA's parameters are kept in float32 here by PEFT's conversion.
    torch.testing.assert_close(converted(model, net(), 12)(X), model(X), rtol=0, atol=1e-5)


def test_fused_and_transposed_layers_are_converted():
    model = adapt(tiny_vit(), init_weights=False, fused_parts=["q", "v"]).eval()
    torch.testing.assert_close(converted(model, tiny_vit(), 192)(IMAGES), model(IMAGES), rtol=0, atol=1e-4)

    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = Conv1D(6, 10)

        def forward(self, x):
            return self.first(x)

    model, x = adapt(Transposed(), target_modules=["first"], init_weights=False), torch.randn(3, 10)
    torch.testing.assert_close(converted(model, Transposed(), 6)(x), model(x), rtol=0, atol=1e-5)


def test_the_error_by_rank_is_that_of_the_conversion():
    model = adapt(net(), target_modules=TWO, init_weights=False, alpha=3.0)
    ranks = [1, 3, 6, 12]
    errors = conversion_error(model, ranks)
    updates = [3.0 * dense(model.base_model.model.get_submodule(name)) for name in TWO]
    for rank in ranks:
        layers = converted(model, net(), rank).base_model.model
        missing = [u - layers.get_submodule(n).get_delta_weight("default") for n, u in zip(TWO, updates, strict=True)]
        expected = (sum(m.square().sum() for m in missing) / sum(u.square().sum() for u in updates)).sqrt().item()
        assert errors[rank] == pytest.approx(expected, abs=1e-6)
    assert errors[1] > errors[3] > errors[6] > 0.1
    assert errors[12] == 0


def test_one_of_several_adapters_is_converted():
    model = adapt(net(), target_modules=TWO, init_weights=False)
    model.add_adapter("other", SurmConfig(structure="low_rank", target_modules=["first"], init_weights=False))
    assert conversion_error(model, [1], "other") == {1: pytest.approx(0, abs=1e-6)}
    model.set_adapter("other")
    torch.testing.assert_close(converted(model, net(), 1, adapter_name="other")(X), model(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["default", "missing"])
def test_no_update_has_no_error(name):
    model = adapt(net(), target_modules=TWO)
    with pytest.raises(ValueError, match=f"No linear layer has an update called '{name}' that is not zero"):
        conversion_error(model, [1], name)


def test_adapters_and_other_layers_say_that_they_cannot_be_converted():
    model = adapt(net(), target_modules=TWO, form="adapter")
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match=r"do not support LoRA conversion: .*SurmAdapter"):
        convert_to_lora.convert_to_lora(model, 1)
    words = adapt(nn.Sequential(nn.Embedding(5, 3)), target_modules=["0"])
    with pytest.raises(TypeError, match=r"do not support LoRA conversion: .*SurmEmbedding"):
        convert_to_lora.convert_to_lora(words, 1)


def test_a_converted_adapter_is_saved_as_lora(tmp_path):
    model = adapt(net(), target_modules=TWO, init_weights=False)
    convert_to_lora.save_as_lora(tmp_path, model, rank=12)
    torch.testing.assert_close(PeftModel.from_pretrained(net(), tmp_path)(X), model(X), rtol=0, atol=1e-5)
