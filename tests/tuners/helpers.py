"""Small models, and updates computed densely with NumPy and SciPy from an adapter's parameters."""

import numpy as np
import scipy.linalg
import timm
import torch
from peft import PeftModel, get_peft_model
from scipy.special import erf
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from surm import SurmConfig
from surm.structures import STRUCTURES, structure_class
from surm.tuners import SurmAdapter

DENSE = {  # by structure: its matrix from its parameters, for one term and a square layer
    "circulant": lambda p: scipy.linalg.circulant(p["r1"][0] * p["r2"][0]),
    "kronecker": lambda p: np.kron(p["A"][0], p["B"][0]),
    "low_rank": lambda p: p["B"][0] @ p["A"][0],
}

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.arange(12).reshape(2, 6)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
X = torch.linspace(-1, 1, 5 * 12, dtype=torch.float64).reshape(5, 12)
TWO = ["first", "second"]
ALL = [*STRUCTURES, "circulant+skew_circulant", "bottleneck"]
ADAPTERS = [name for name in ALL if name == "bottleneck" or not structure_class(name).needs_weight]

ACTIVATIONS = {  # in NumPy
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "identity": lambda x: x,
}


class Net(nn.Module):
    """Two layers of width 12 with a head, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2, img_size=32, num_classes=3).eval()


def tiny_bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def adapt(model: nn.Module, *, seed: int = 1, **settings) -> PeftModel:
    torch.manual_seed(seed)
    return get_peft_model(model, SurmConfig(**settings))


def dense(layer: nn.Module, part: str = "update", adapter: str = "default", structure: str = "circulant") -> Tensor:
    """S of one part of an adapted layer in float64, without surm."""
    parameters = getattr(layer, f"surm_{part}")[adapter].named_parameters()
    return torch.from_numpy(DENSE[structure]({name: p.detach().double().numpy() for name, p in parameters}))


# --- adapter form ---------------------------------------------------------------------------------------------------


def adapter(model, **settings):
    return adapt(model, form="adapter", **settings)


def adapter_config(**settings):
    return SurmConfig(form="adapter", init_weights=False, **settings)


def trained(model):
    return {name.split("model.model.")[1] for name, p in model.named_parameters() if p.requires_grad}


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def sites(model):
    return {name for name, module in model.base_model.model.named_modules() if isinstance(module, SurmAdapter)}


def numbers(module):
    """The parameters in float64, without surm."""
    return {name.rpartition(".")[-1]: p.detach().double().numpy() for name, p in module.named_parameters()}


def body_in_numpy(layer, x, structure, activation, name="default"):
    """What an adapter adds to x."""
    act, body = ACTIVATIONS[activation], layer.surm_adapter[name]
    inner, outer = numbers(body.inner), numbers(body.outer)
    if structure == "bottleneck":
        hidden = act(x @ inner["weight"].T + inner.get("bias", 0.0))
        return hidden @ outer["weight"].T + outer.get("bias", 0.0)
    return act(x @ DENSE[structure](inner).T) + outer.get("bias", 0.0)


def logits(model, x):
    output = model(x)
    return getattr(output, "logits", output)


def timm_vit(**settings):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3, **settings).eval()
