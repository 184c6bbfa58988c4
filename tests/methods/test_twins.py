"""Methods of other papers against their formulas, written out in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, softmax

from surm.methods.registry import AnyMethodConfig, make_method, method_class
from surm.models import load_backbone
from surm.shared.errors import RunError
from surm.tuners import SurmAdapter

HOUSED = {"form": "adapter", "sites": "houlsby", "adapter_bias": True, "activation": "gelu", "position": "after"}


def adapted(name: str, model: str, **options) -> nn.Module:
    """In float64, with random parameters."""
    torch.manual_seed(0)
    method = make_method(method_class(name).resolve(AnyMethodConfig(name=name, **options), "adapter", None))
    predicts = "tokens" if model == "tiny_llama" else "labels"
    module = method.apply(load_backbone(model, num_labels=3, predicts=predicts), HOUSED).eval().double()
    with torch.no_grad():
        for parameter in (parameter for parameter in module.parameters() if parameter.requires_grad):
            parameter.normal_(std=0.3)
    return module


def bodies(module: nn.Module) -> list[tuple[str, nn.Module]]:
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, SurmAdapter)]
    return [(name, layer.surm_adapter["default"]) for name, layer in layers]


def phm(A: Tensor, L: Tensor, R: Tensor) -> Tensor:
    return sum(torch.kron(a, left @ right) for a, left, right in zip(A, L, R, strict=True))


def test_compacter_is_the_sum_of_kronecker_products_with_shared_factors() -> None:
    module = adapted("compacter", "tiny_vit", size=8, terms=4, rank=2)
    (shared,) = module.base_model.surm_shared["default"]
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    loss, expected, twins = 0, 0, []
    A = shared.A.detach().clone().requires_grad_()
    for _, body in bodies(module):
        named = {name: p.detach().clone().requires_grad_() for name, p in body.named_parameters()}
        down, up = phm(A, named["inner.L"], named["inner.R"]), phm(A, named["outer.0.L"], named["outer.0.R"])
        hidden = gelu(linear(x, down, named["shift.bias"]))
        twin = linear(hidden, up, named["outer.1.bias"])
        np.testing.assert_allclose(body(x).detach(), twin.detach(), atol=1e-12)
        np.testing.assert_allclose(body.inner.dense().detach(), down.detach(), atol=1e-12)
        loss, expected = loss + body(x).square().sum(), expected + twin.square().sum()
        twins += [(parameter, named[name]) for name, parameter in body.named_parameters()]
    loss.backward()
    expected.backward()
    assert len(twins) == 4 * 6
    for parameter, twin in [(shared.A, A), *twins]:
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("model", "lowest"), [("tiny_vit", "blocks.0."), ("tiny_bert", "layer.0.")])
def test_adapter_drop_is_adapters_everywhere_with_the_lowest_taken_off(model: str, lowest: str) -> None:
    dropped = adapted("adapter_drop", model, dropped_layers=1)
    whole = adapted("bottleneck", model)
    kept = dict(bodies(dropped))
    assert len(kept) == 2
    assert not any(lowest in name for name in kept)
    with torch.no_grad():
        for name, body in bodies(whole):
            if name in kept:
                body.load_state_dict(kept[name].state_dict())
            else:
                for parameter in body.outer.parameters():
                    parameter.zero_()
    one, other = (dict(module.named_modules()) for module in (dropped, whole))
    head = next(name for name in one if name.endswith("modules_to_save.default"))
    other[head].load_state_dict(one[head].state_dict())
    inputs = (
        (torch.randn(2, 3, 28, 28, dtype=torch.float64),) if model == "tiny_vit" else (torch.arange(14).view(2, 7),)
    )
    outputs = [module(*inputs) for module in (dropped, whole)]
    first, second = (getattr(output, "logits", output) for output in outputs)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_a_prefix_stands_before_the_keys_and_values_of_each_layer() -> None:
    """BERT by its formulas, with padding; positions are counted from behind the prefix, as PEFT does it."""
    module = adapted("prefix_tuning", "tiny_bert", tokens=5)
    bert = module.base_model.bert
    words = torch.randint(5, 60, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    prefix = module.prompt_encoder["default"].embedding.weight.view(5, 2, 2, 2, 16)  # layer, key or value, head
    table = bert.embeddings
    x = table.word_embeddings(words) + table.position_embeddings.weight[5:12] + table.token_type_embeddings.weight[0]
    x = table.LayerNorm(x)
    seen = torch.cat([torch.ones(2, 5), mask], dim=1).bool()[:, None, None, :]
    for index, layer in enumerate(bert.encoder.layer):
        own = layer.attention.self
        q, k, v = (part(x).view(2, 7, 2, 16).transpose(1, 2) for part in (own.query, own.key, own.value))
        before = [prefix[:, index, which].transpose(0, 1).expand(2, -1, -1, -1) for which in (0, 1)]
        k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        weights = softmax((q @ k.mT / 4).masked_fill(~seen, -torch.inf), dim=-1)
        x = layer.attention.output((weights @ v).transpose(1, 2).flatten(2), x)
        x = layer.output(layer.intermediate(x), x)
    expected = module.base_model.classifier(bert.pooler(x))
    logits = module(input_ids=words, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)


def test_a_prefix_stands_before_the_keys_and_values_that_queries_share() -> None:
    """Llama by its formulas: keys of the text are turned by their places behind the prefix, whose own are not."""
    module = adapted("prefix_tuning", "tiny_llama", tokens=5)
    llama = module.base_model.model
    words = torch.randint(5, 200, (2, 7))
    prefix = module.prompt_encoder["default"].embedding.weight.view(5, 2, 2, 2, 8)  # layer, key or value, head
    angles = torch.arange(5.0, 12)[:, None] * 10_000 ** (-torch.arange(4) / 4)
    seen = torch.cat([torch.ones(7, 5), torch.ones(7, 7).tril()], dim=1).bool()

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 8)).transpose(1, 2)

    def turned(x: Tensor) -> Tensor:
        z = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([z.real, z.imag], dim=-1)

    def normal(x: Tensor, layer: nn.Module) -> Tensor:
        return layer.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    x = llama.embed_tokens(words)
    for index, layer in enumerate(llama.layers):
        own, y = layer.self_attn, normal(x, layer.input_layernorm)
        q, k, v = (heads(part(y)) for part in (own.q_proj, own.k_proj, own.v_proj))
        before = [prefix[:, index, which].transpose(0, 1).expand(2, -1, -1, -1) for which in (0, 1)]
        k, v = torch.cat([before[0], turned(k)], dim=2), torch.cat([before[1], v], dim=2)
        k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
        weights = softmax((turned(q) @ k.mT / 8**0.5).masked_fill(~seen, -torch.inf), dim=-1)
        x = x + own.o_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.mlp(normal(x, layer.post_attention_layernorm))
    expected = linear(normal(x, llama.norm), llama.embed_tokens.weight)
    # The model's angles are in float32.
    torch.testing.assert_close(module(input_ids=words).logits, expected, rtol=1e-4, atol=1e-6)


def test_a_text_too_long_for_its_prefix_is_one_sentence() -> None:
    module = adapted("prefix_tuning", "tiny_bert", tokens=30)
    with pytest.raises(RunError, match="a text of 99 tokens behind a prefix of 30 is longer than the model's 128 pos"):
        module(input_ids=torch.zeros(1, 99, dtype=torch.long))
