"""The weight form on other layers than linear ones, and which class wraps which layer."""

from typing import Any, cast

import peft.utils
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import embedding
from transformers.pytorch_utils import Conv1D

from surm.structures import Structure
from surm.structures.family import ConstantDiagonals
from surm.tuners.layer import SurmLinear, SurmWeight

SUPPORTED = "linear layers (also quantised ones and Conv1D of transformers), Embedding, Conv1d, Conv2d and Conv3d"


class SurmConv1D(SurmLinear):
    """A linear layer as in GPT-2, whose weight (inputs, outputs) is W transposed."""

    kind = Conv1D

    @classmethod
    def sizes(cls, base: Any) -> tuple[int, int]:
        inputs, outputs = base.weight.shape
        return outputs, inputs

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.columns, self.rows

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.mT


class SurmEmbedding(SurmWeight):
    """Row i of W + alpha S for the index i; S (indices, features) has the layout of the embedding's weight.

    Rows of a circulant or one Toeplitz matrix are read off its generator, O(features) an index; other structures are
    made dense for each call. There is no dropout, as in LoRA. The base's settings hold here too: the row `padding_idx`
    gets no gradient, `scale_grad_by_freq` divides gradients by the count of an index, a sum above `max_norm` is
    shortened to it, and a factor `embed_scale` multiplies the update.
    """

    @classmethod
    def sizes(cls, base: Any) -> tuple[int, int]:
        return base.num_embeddings, base.embedding_dim

    @property
    def in_features(self) -> int:
        return self.rows

    @property
    def out_features(self) -> int:
        return self.columns

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = super().forward(x, *args, **kwargs)
        base = cast(nn.Embedding, self.get_base_layer())
        if base.max_norm is None or self.disable_adapters or self.merged:
            return result
        with torch.no_grad():  # as torch.nn.functional.embedding does it, to the rows of its weight
            norm = result.norm(base.norm_type, dim=-1, keepdim=True)
            factor = torch.where(norm > base.max_norm, base.max_norm / (norm + 1e-7), 1.0)
        return result * factor

    def product(self, structure: Structure, x: Tensor, backend: str) -> Tensor:
        base = cast(nn.Embedding, self.get_base_layer())
        rows = _rows(structure, x)
        fixed = rows.detach()
        if base.padding_idx is not None:
            rows = torch.where((x == base.padding_idx).unsqueeze(-1), fixed, rows)
        if base.scale_grad_by_freq:
            counts = torch.bincount(x.flatten(), minlength=base.num_embeddings)[x]
            rows = fixed + (rows - fixed) / counts.unsqueeze(-1)
        scale: Tensor | None = self._get_embed_scale()  # type: ignore[no-untyped-call]
        return rows if scale is None else rows * scale.to(rows)


def _rows(structure: Structure, x: Tensor) -> Tensor:
    """The rows x of S: (...) -> (..., n)."""
    if not (isinstance(structure, ConstantDiagonals) and structure.is_linear()):
        return embedding(x, structure.dense())
    dtype = torch.promote_types(structure.factors()[0].dtype, torch.float32)
    d = structure.diagonals(structure.generator(dtype))  # entry (i, j) is d[i - j + n - 1]
    return d[x.unsqueeze(-1) + torch.arange(structure.n - 1, -1, -1, device=x.device)]


class SurmConv(SurmWeight):
    """A convolution by the kernel W + alpha S, of any number of dimensions and groups.

    S (outputs, inputs / groups * kernel's entries) has the layout of the kernel with all but its first dimension
    flattened. Its dense form is convolved with the input as the base's kernel is, at the same cost again.
    """

    @classmethod
    def sizes(cls, base: Any) -> tuple[int, int]:
        return base.weight.shape[0], base.weight[0].numel()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return tuple(cast(nn.Conv2d, self.get_base_layer()).weight.shape)

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.view(self.rows, self.columns)

    def product(self, structure: Structure, x: Tensor, backend: str) -> Tensor:
        base = cast(nn.Conv2d, self.get_base_layer())
        if type(base).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
            kernel = structure.dense().view(self.weight_shape)
            return cast(Tensor, base._conv_forward(self._cast_input_dtype(x, kernel.dtype), kernel, None))
        # A subclass that pads in its own way: its forward with the kernel in place of the weight.
        update = {"weight": structure.dense().view(self.weight_shape)}
        bias = {} if base.bias is None else {"bias": torch.zeros_like(base.bias, dtype=update["weight"].dtype)}
        x = self._cast_input_dtype(x, update["weight"].dtype)
        return cast(Tensor, functional_call(base, update | bias, (x,)))


def keep_layout(model: nn.Module) -> None:
    """Have bitsandbytes (0.50) keep the layout of its 4-bit weights, which can be differentiated and dequantised.

    On a CPU with AVX512-BF16 it would pack a weight in another one at a layer's first call in eval mode. From then on
    no gradient passes the layer, in training mode neither, and dequantising reads wrong numbers, so that what is
    trained after an evaluation and what is merged were wrong without a word; LoRA's are.
    """
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            if getattr(cast(Any, layer.weight).quant_state, "packing_format_for_cpu", False):
                layer.state_dict()  # which unpacks the weight, its scales rounded to bfloat16


def weight_layer(base: nn.Module, model: nn.Module) -> tuple[type[SurmWeight] | None, Any]:
    """The class that wraps a base layer, None if there is none, with PEFT's backend where the layer is quantised."""
    backend = None
    if hasattr(peft.utils, "resolve_quantization_backend"):  # peft < 0.20 has no general way to a quantised weight
        settings = peft.utils.get_quantization_kwargs(model)
        backend = peft.utils.resolve_quantization_backend(base, **settings)
    if backend is not None:
        return (SurmLinear if backend.layer_type == "linear" else None), backend
    if isinstance(base, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return SurmConv, None
    kinds: dict[type[nn.Module], type[SurmWeight]] = {
        nn.Linear: SurmLinear,
        Conv1D: SurmConv1D,
        nn.Embedding: SurmEmbedding,
    }
    return next((layer for kind, layer in kinds.items() if isinstance(base, kind)), None), None
