"""Query, key and value as three layers, so that every method sees the same targets."""

import torch
from torch import Tensor, nn


class SplitProjection(nn.Module):
    """A fused query-key-value projection as `q_proj`, `k_proj` and `v_proj`: (.., n) to (.., 3m), as before."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        weights = fused.weight.chunk(3)
        biases = (None, None, None) if fused.bias is None else fused.bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b) for w, b in zip(weights, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)


def split_fused_projections(module: nn.Module) -> nn.Module:
    """Replace, in place, every timm `qkv` Linear below `module` by three Linears; outputs stay equal.

    The new names end in `q_proj`, `k_proj` and `v_proj`, which PEFT's own methods can then target.
    """
    for block in list(module.modules()):
        fused = getattr(block, "qkv", None)
        if isinstance(fused, nn.Linear):
            block.qkv = SplitProjection(fused)
    return module


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # The meta device draws no random numbers: splitting must not change the head's or the data's order.
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return linear
