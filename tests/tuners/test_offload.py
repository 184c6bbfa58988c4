"""Models whose weights accelerate keeps elsewhere: adapted before and after that, they give what they gave without."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import PeftModel
from torch import nn

from tests.tools.skips import needs_peft_021
from tests.tuners.helpers import ADAPTERS, ALL, TWO, X, adapt, net

pytestmark = needs_peft_021  # PEFT 0.18 fails on layers without storage of their own
CPU = torch.device("cpu")
WAYS = {
    "cpu_offload": lambda model, _: cpu_offload(model, CPU),
    "disk_offload": lambda model, folder: disk_offload(model, str(folder), CPU),
    "device_map": lambda model, folder: dispatch_model(
        model,
        {"first": "cpu", "second": "disk", "head": "cpu"},
        main_device="cpu",
        offload_dir=folder,
        force_hooks=True,
    ),
}
SETTINGS = [  # of an adapter
    *({"structure": name} for name in ALL if name != "bottleneck"),
    *({"structure": name, "backend": way} for name in ("circulant", "ldr") for way in ("fused", "fft", "dense")),
    *({"structure": name, "form": "adapter"} for name in ADAPTERS),
    {"structure": "circulant", "form": "adapter", "backend": "fft"},
    {"structure": "kronecker", "dropout": 0.1},
]


class Text(nn.Module):
    """Layers that are not linear, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.conv = nn.Embedding(9, 6), nn.Conv1d(6, 4, 3)
        self.double()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.conv(self.words(ids).mT)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def twins(settings):
    """A model that nobody offloads, with its output and gradients."""
    model = adapt(net(), target_modules=TWO, init_weights=False, **settings).eval()
    output = model(X)
    output.square().sum().backward()
    return model, output.detach(), gradients(model)


@pytest.mark.sample(8)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_offloaded_base_is_adapted_and_trained(settings, way, tmp_path):
    twin, expected, gradient = twins(settings)
    model = adapt(WAYS[way](net(), tmp_path), target_modules=TWO, init_weights=False, **settings).eval()
    own = dict(model.named_parameters())
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    assert {own[name].device for name in trained} == {CPU}
    model.load_state_dict({name: p.detach() for name, p in trained.items()}, strict=False)
    output = model(X)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    assert gradient
    torch.testing.assert_close(gradients(model), gradient)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(PeftModel.from_pretrained(net(), tmp_path / "adapter")(X), expected)
    if settings.get("form") != "adapter":
        torch.testing.assert_close(model.merge_and_unload()(X), expected)


@pytest.mark.sample(8)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_adapted_model_is_offloaded_and_used_but_not_trained(settings, way, tmp_path):
    model, expected, _ = twins(settings)
    model.zero_grad()
    WAYS[way](model.base_model.model, tmp_path)
    output = model(X)
    torch.testing.assert_close(output.detach(), expected)
    with pytest.raises(RuntimeError, match="offload the base model first and adapt it then"):
        output.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected)
        if settings.get("form") != "adapter":
            model.merge_adapter()
            torch.testing.assert_close(model(X), expected)
            model.unmerge_adapter()
            torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("first", ["offloaded", "adapted"])
def test_embeddings_and_convolutions(first):
    ids, settings = torch.arange(8).view(2, 4), {"target_modules": ["words", "conv"], "init_weights": False}
    twin = adapt(Text(), **settings)
    expected = twin(ids).detach()
    if first == "offloaded":
        model = adapt(cpu_offload(Text(), CPU), **settings)
        model.load_state_dict(
            {name: value for name, value in twin.state_dict().items() if "surm" in name}, strict=False
        )
    else:
        model = cpu_offload(twin, CPU)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("form", ["weight", "adapter"])
def test_a_saved_adapter_is_loaded_into_an_offloaded_base(form, low_cpu_mem_usage, tmp_path):
    model, expected, _ = twins({"form": form})
    model.save_pretrained(tmp_path)
    base = cpu_offload(net(), CPU)
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    loaded.load_adapter(tmp_path, "again", low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(loaded(X).detach(), expected)
    loaded.set_adapter("again")
    torch.testing.assert_close(loaded(X).detach(), expected)
