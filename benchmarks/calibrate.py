"""What the cost model of `surm.structures.backends` needs to know of a machine."""

import math
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from benchmarks.layers import STRUCTURES, layers
from benchmarks.result import FLOOR

ROWS = (1, 64, 2048)
SIZES = (384, 768, 1536)
CHUNK = 256  # rows that a transform takes at a time
NARROW = 8  # columns of a small factor
LITTLE = 16  # features and rows, with which next to nothing is computed
SHORTEST = 0.3  # seconds that each number is measured for


def calibrate(device: torch.device) -> dict[str, Any]:
    """Medians by dtype.

    `product`: seconds per multiply-add of (rows x size) (size x size). `fft`: of the real FFT of 256 rows, from this
    dtype by way of float32, seconds per element and factor of two of the length. `add`: of a sum into a third tensor,
    seconds per element. `narrow`: of a product with eight columns, seconds per multiply-add. `call`: seconds of a call
    from Python that has next to nothing to do. `host`: seconds of a training step of a layer of 16 features, frozen and
    with an update of each structure: what Python and the launches of kernels take, whatever the size.
    """
    return {
        str(dtype).removeprefix("torch."): {
            "product": [_product(rows, size, dtype, device) for rows in ROWS for size in SIZES],
            "fft": [_fft(size, dtype, device) for size in SIZES],
            "add": [_add(size, dtype, device) for size in SIZES],
            "narrow": [_narrow(size, dtype, device) for size in SIZES],
            "call": _seconds("torch.add(a, a)", a=torch.ones(1, dtype=dtype, device=device)),
            "host": {name: _host(name, dtype, device) for name in (FLOOR, *STRUCTURES)},
        }
        for dtype in (torch.float32, torch.bfloat16)
    }


def _product(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    x = torch.randn(rows, size, device=device).to(dtype)
    W = torch.randn(size, size, device=device).to(dtype)
    return {"rows": rows, "size": size, "seconds": _seconds("x @ W.mT", x=x, W=W) / (rows * size**2)}


def _narrow(size: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    x = torch.randn(2048, size, device=device).to(dtype)
    B = torch.randn(NARROW, size, device=device).to(dtype)
    return {"size": size, "seconds": _seconds("x @ B.mT", x=x, B=B) / (len(x) * size * NARROW)}


def _host(name: str, dtype: torch.dtype, device: torch.device) -> float:
    layer = layers("dense")[name].build(nn.Linear(LITTLE, LITTLE, dtype=dtype, device=device))
    x = torch.randn(1, LITTLE, LITTLE, dtype=dtype, device=device, requires_grad=True)
    return _seconds("layer(x).backward(x)", layer=layer, x=x)


def _fft(size: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    x = torch.randn(CHUNK, size, device=device).to(dtype)
    return {"size": size, "seconds": _seconds("torch.fft.rfft(x.float())", x=x) / (CHUNK * size * math.log2(size))}


def _add(size: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    a = torch.ones(size, size, dtype=dtype, device=device)
    return {"size": size, "seconds": _seconds("torch.add(a, a)", a=a) / size**2}


def _seconds(statement: str, **names: Any) -> float:
    timer = Timer(statement, globals={"torch": torch, **names}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SHORTEST).median)
