"""Layers other than linear ones, and quantised layers."""

import copy
import warnings
from types import SimpleNamespace

import peft
import pytest
import timm.layers
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from surm.structures import STRUCTURES
from surm.tuners import SurmLinear, bases
from tests.tuners.helpers import adapt, dense

ALL = [*STRUCTURES, "circulant+skew_circulant"]


class Only(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def adapted(layer, **settings):
    """A copy of the layer, adapted."""
    return adapt(Only(copy.deepcopy(layer)), target_modules=["layer"], **({"init_weights": False} | settings))


def update(model, part="update"):
    """S as a matrix, whose own product is tested with the structures."""
    return getattr(model.base_model.model.layer, f"surm_{part}")["default"].dense().detach()


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def assert_merges(model, x):
    """Merging and unmerging keep the output, and unloading gives it to the plain layer."""
    output, layer = model(x), model.base_model.model.layer
    weight, kind = layer.weight.detach().clone(), type(layer.get_base_layer())
    model.merge_adapter(safe_merge=True)
    assert not torch.equal(layer.weight, weight)
    close(layer.get_base_layer()(x), output)
    model.unmerge_adapter()
    close(layer.weight, weight, 1e-14)
    plain = model.merge_and_unload()
    assert type(plain.layer) is kind
    close(plain(x), output)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize(("m", "n"), [(7, 13), (13, 7), (1, 5), (5, 1), (1, 1), (9, 15)])
def test_linear_layers_of_any_size(structure, m, n):
    torch.manual_seed(0)
    base, x = nn.Linear(n, m).double(), torch.randn(3, n, dtype=torch.float64)
    model = adapted(base, structure=structure, alpha=-0.7)
    close(model(x), functional.linear(x, base.weight - 0.7 * update(model), base.bias))
    assert_merges(model, x)


# --- Conv1D of transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ALL)
def test_conv1d_of_transformers_is_a_transposed_linear_layer(structure):
    torch.manual_seed(0)
    base, x = Conv1D(6, 10).double(), torch.randn(2, 3, 10, dtype=torch.float64)
    model = adapted(base, structure=structure, alpha=2.0)
    weight = base.weight.T + 2.0 * update(model)
    assert update(model).shape == (6, 10)
    close(model(x), functional.linear(x, weight, base.bias))
    close(model.base_model.model.layer.get_delta_weight("default"), 2.0 * update(model).T)
    assert_merges(model, x)


def test_a_fused_conv1d_has_one_matrix_a_part():
    torch.manual_seed(0)
    base, x = Conv1D(12, 4).double(), torch.randn(5, 4, dtype=torch.float64)
    model = adapted(base, fused={"layer": 3}, fused_parts=["q", "v"])
    layer = model.base_model.model.layer
    rows = [dense(layer, "q"), torch.zeros(4, 4, dtype=torch.float64), dense(layer, "v")]
    close(model(x), base(x) + x @ torch.cat(rows).T)
    assert_merges(model, x)


# --- Embedding --------------------------------------------------------------------------------------------------------

INDICES = torch.tensor([[0, 3, 3, 10], [2, 0, 9, 3]])


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize(("count", "features"), [(11, 4), (11, 17)])
def test_an_embedding_adds_rows_of_the_matrix(structure, count, features):
    torch.manual_seed(0)
    base = nn.Embedding(count, features).double()
    model = adapted(base, structure=structure, alpha=0.5)
    assert update(model).shape == (count, features)
    close(model(INDICES), (base.weight + 0.5 * update(model))[INDICES])
    assert_merges(model, INDICES)


@pytest.mark.parametrize("structure", ["circulant", "toeplitz", "kronecker"])
@pytest.mark.parametrize("settings", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}])
def test_gradients_of_an_embedding_are_those_of_torch(structure, settings):
    torch.manual_seed(0)
    base = nn.Embedding(11, 4, **settings).double()
    model = adapted(base, structure=structure, structure_options={"factors": 1} if structure == "toeplitz" else None)
    parameters = [p for p in model.parameters() if p.requires_grad]
    target = torch.randn(2, 4, 4, dtype=torch.float64)
    gradients = torch.autograd.grad((model(INDICES) * target).sum(), parameters)
    weight = base.weight + model.base_model.model.layer.surm_update["default"].dense()
    twin = functional.embedding(INDICES, weight, **settings)
    close(model(INDICES), twin)
    for one, other in zip(gradients, torch.autograd.grad((twin * target).sum(), parameters), strict=True):
        close(one, other)
        assert one.abs().max() > 0


def test_max_norm_holds_for_the_sum():
    torch.manual_seed(0)
    base = nn.Embedding(11, 4, max_norm=1.0).double()
    at_start = adapted(base, init_weights=True)
    assert torch.equal(at_start(INDICES), copy.deepcopy(base)(INDICES))
    model = adapted(base, alpha=100.0)
    output = model(INDICES)
    assert output.norm(dim=-1).max() <= 1.0
    model.merge_adapter()
    close(model(INDICES), output, 1e-6)


def test_a_scaled_embedding_scales_the_update():
    class Scaled(nn.Embedding):
        embed_scale = 3.0

        def forward(self, x):
            return super().forward(x) * self.embed_scale

    torch.manual_seed(0)
    base = Scaled(11, 4).double()
    model = adapted(base)
    close(model(INDICES), 3.0 * (base.weight + update(model))[INDICES])
    assert_merges(model, INDICES)


def test_a_large_embedding_is_looked_up_without_its_dense_matrix():
    model = adapted(nn.Embedding(2_000_000, 64, device="meta"))
    layer = model.base_model.model.layer.to_empty(device="cpu")  # 512 MB of the base, untouched
    structure = layer.surm_update["default"]
    structure.dense = None  # would raise
    with torch.no_grad():
        structure.r1.fill_(2.0)
        structure.r2.fill_(0.5)
    assert torch.equal(bases._rows(structure, torch.tensor([7, 1_999_999])), torch.ones(2, 64))


# --- convolutions -----------------------------------------------------------------------------------------------------

CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, padding=1),
    nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2, padding_mode="circular", padding=2, bias=False),
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding="valid", groups=4),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", dilation=2),
    nn.Conv2d(4, 4, 1, groups=4),
    nn.Conv3d(4, 2, (1, 2, 3), padding=(0, 1, 1)),
]


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize("base", CONVOLUTIONS, ids=str)
def test_a_convolution_is_that_by_the_sum_of_the_kernels(structure, base):
    torch.manual_seed(0)
    base = copy.deepcopy(base).double()
    x = torch.randn(2, 4, *[7, 8, 6][: base.weight.ndim - 2], dtype=torch.float64)
    model = adapted(base, structure=structure, alpha=1.5)
    twin = copy.deepcopy(base)
    twin.weight.data += 1.5 * update(model).reshape(base.weight.shape)
    close(model(x), twin(x))
    assert (model(x) - base(x)).abs().max() > 1e-6
    assert_merges(model, x)


def test_a_convolution_with_a_forward_of_its_own_keeps_it():
    torch.manual_seed(0)
    base, x = timm.layers.Conv2dSame(3, 4, 3, stride=2).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert_merges(adapted(base), x)


def test_merging_keeps_the_memory_format():
    base = nn.Conv2d(4, 6, 3).double().to(memory_format=torch.channels_last)
    model = adapted(base)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    output = model(x)
    model.merge_adapter()
    assert model.base_model.model.layer.weight.is_contiguous(memory_format=torch.channels_last)
    close(model(x), output)


def test_other_layers_are_refused():
    with pytest.raises(
        TypeError, match=r"Target module layer of type Bilinear is not supported: only .* are\."
    ) as error:
        adapted(nn.Bilinear(2, 2, 2))
    assert "\n" not in str(error.value)


# --- quantised layers -------------------------------------------------------------------------------------------------


class Packed(nn.Linear):
    """A linear layer whose weight is stored as signs, two inputs in a byte."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        signs = torch.randint(0, 2, (outputs, inputs), dtype=torch.uint8)
        self.weight = nn.Parameter(signs[:, ::2] + 2 * signs[:, 1::2], requires_grad=False)

    def unpacked(self):
        return torch.stack((self.weight % 2, self.weight // 2), dim=-1).flatten(1) * 2.0 - 1

    def forward(self, x):
        return functional.linear(x, self.unpacked(), self.bias)


class Signs:
    """As a `QuantizationBackend` of PEFT."""

    layer_type = "linear"
    supports_merge = True
    cloned = 0

    def get_base_weight(self, base_layer):
        return base_layer.unpacked()

    def set_base_weight(self, peft_layer, weight_data):
        signs = (weight_data > 0).to(torch.uint8)
        peft_layer.get_base_layer().weight.data = signs[:, ::2] + 2 * signs[:, 1::2]

    def maybe_clone_base_result(self, x):
        self.cloned += 1
        return x.clone()


def install(monkeypatch, backend_of):
    monkeypatch.setattr(peft.utils, "get_quantization_kwargs", lambda model: {}, raising=False)
    monkeypatch.setattr(peft.utils, "resolve_quantization_backend", backend_of, raising=False)


def test_a_packed_weight_is_adapted_by_its_features_and_not_merged_without_a_backend():
    base, x = Packed(10, 6), torch.randn(3, 10)
    model = adapted(base)
    layer = model.base_model.model.layer
    assert isinstance(layer, SurmLinear)
    assert all(p.dtype == torch.float32 for p in layer.surm_update.parameters())
    close(model(x), base(x) + x @ update(model).T, 1e-6)
    assert layer.get_delta_weight("default").shape == (6, 10)
    packed = base.weight.clone()
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            TypeError, match="Packed is quantised in a way that this version of PEFT cannot undo"
        ) as error:
            merge()
        assert "\n" not in str(error.value)
    assert torch.equal(layer.weight, packed)
    assert not layer.merged


def test_a_quantised_weight_is_merged_through_the_backend(monkeypatch):
    backend = Signs()
    install(monkeypatch, lambda layer: backend)
    torch.manual_seed(0)
    base, x = Packed(10, 6), torch.randn(3, 10)
    model = adapted(base, alpha=1000.0)
    output = model(x)
    assert backend.cloned == 1
    close(output, base(x) + 1000.0 * x @ update(model).T, 1e-3)
    model.merge_adapter()
    merged = torch.sign(base.unpacked() + 1000.0 * update(model))
    close(model(x), functional.linear(x, merged, base.bias), 1e-5)
    assert not torch.equal(merged, base.unpacked())


def test_what_a_backend_cannot_do_is_said_before_the_weight_is_touched(monkeypatch):
    quantization = pytest.importorskip("peft.utils.quantization_utils", reason="this peft has no backends")
    found = SimpleNamespace(backend=quantization.ForwardOnlyQuantizationBackend("gptq"))
    install(monkeypatch, lambda layer: found.backend)
    base = Packed(10, 6)
    model = adapted(base)
    with pytest.raises(TypeError, match="not supported for gptq"):
        model.merge_adapter()
    found.backend = Signs()
    model = adapted(base, keep_base_weight=True)
    with pytest.raises(ValueError, match="keep_base_weight=True is not possible with a quantised layer"):
        model.merge_adapter()
    assert torch.equal(model.base_model.model.layer.weight, base.weight)


def test_torchao_weights_are_adapted_and_merged():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torch.manual_seed(0)
    scheme = quantization.Int8WeightOnlyConfig
    model = Only(nn.Linear(64, 32))
    weight = model.layer.weight.detach().clone()
    quantization.quantize_(model, scheme())
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(get_apply_tensor_subclass=scheme))
    x = torch.randn(5, 64)
    base = model(x)
    model = adapt(model, target_modules=["layer"], init_weights=False)
    output = model(x)
    close(output, base + x @ update(model).T, 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter(safe_merge=True)
    layer = model.base_model.model.layer
    step = weight.abs().amax(dim=1) / 127  # of the first quantisation; that of the merged weight is about as large
    assert ((layer.weight.dequantize() - weight - update(model)).abs().amax(dim=1) < 2.5 * step).all()
    close(model(x), output, 0.1)


class Two(nn.Module):
    """Two layers with weights of 4 bits, of which the first is adapted."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first = kind(64, 64, bias=False, quant_type="nf4").to("cpu")
        self.second = kind(64, 32, bias=False, quant_type="nf4", compress_statistics=True).to("cpu")

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("called_before", [False, True])
def test_weights_of_bitsandbytes_are_trained_after_an_evaluation_and_merged(called_before):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    base, x = Two(bnb.nn.Linear4bit), torch.randn(5, 64)

    def weight(layer):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)

    first, second = weight(base.first), weight(base.second)
    if called_before:
        base.requires_grad_(False).eval()(x)
    model = adapt(base, target_modules=["first"], init_weights=False)
    layer = model.base_model.model.first
    structure = layer.surm_update["default"]
    atol = 0.02 if called_before else 1e-5  # bitsandbytes keeps scales in bfloat16 after such a call

    def by_hand():
        return x @ (first + structure.dense()).T @ second.T

    model.eval()
    with torch.no_grad():
        close(model(x), by_hand(), atol)
    parameters = list(structure.parameters())
    expected = torch.autograd.grad(by_hand().sum(), parameters)
    actual = torch.autograd.grad(model.train()(x).sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        assert other.abs().max() > 0.1
        close(one, other, 10 * atol)

    with torch.no_grad():
        model.eval()(x)
        model.merge_adapter(safe_merge=True)
        sought = first + structure.dense()
        # The levels of NF4 lie at most 0.304 of a block's largest weight apart; a block is a row.
        assert ((weight(layer) - sought).abs() <= (0.153 + atol) * sought.abs().amax(dim=1, keepdim=True)).all()
        close(model(x), x @ weight(layer).T @ second.T, atol)
