"""Small models, and updates computed densely with NumPy and SciPy from an adapter's parameters."""

import numpy as np
import scipy.linalg
import timm
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from surm import SurmConfig

DENSE = {  # by structure: its matrix from its parameters, for one term and a square layer
    "circulant": lambda p: scipy.linalg.circulant(p["r1"][0] * p["r2"][0]),
    "kronecker": lambda p: np.kron(p["A"][0], p["B"][0]),
    "low_rank": lambda p: p["B"][0] @ p["A"][0],
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
