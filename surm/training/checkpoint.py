"""Checkpoints: everything a run needs to go on bit for bit, in one safetensors file (no pickle), renamed into place."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surm.methods.base import Method
from surm.records.storage import write_atomically
from surm.shared.errors import RecordError


@dataclass
class Progress:
    """What a resumed run needs to know besides tensors; kept as JSON in the checkpoint."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    resumed_from_steps: list[int] = field(default_factory=list)
    seconds: float = 0.0
    scaler: dict[str, Any] | None = None


def save_checkpoint(path: Path, method: Method, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write trained parameters, the method's and the optimiser's state, and random numbers; the rest is loaded anew.

    Args:
        path: of the file; an older checkpoint is replaced in one step.
        method: applied to the model; only its trained parameters are kept.
        optimizer: over exactly these parameters.
        progress: how far the run is.
    """
    tensors: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for key, value in method.state_dict().items():
        tensors[f"method/{key}"] = value.detach().contiguous()
    for name, parameter in method.trained_parameters():
        tensors[f"parameter/{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value.contiguous()
    write_atomically(path, save(tensors, metadata={"progress": json.dumps(vars(progress))}))


def check_checkpoint(path: Path) -> None:
    """Look whether a checkpoint, if there is one, is whole: its header and its length.

    Raises:
        RecordError: it is not.
    """
    if path.exists():
        with _open(path) as file:
            json.loads(file.metadata()["progress"])


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError):
        raise RecordError(
            f"{path} is not a whole checkpoint: delete it to start this run from its beginning."
        ) from None


def load_checkpoint(path: Path, method: Method, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's state back in place and return its `progress`.

    Raises:
        RecordError: the file cannot be read or belongs to other parameters.
    """
    with _open(path) as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)

    parameters, saved = dict(method.trained_parameters()), _below("parameter", tensors)
    if saved.keys() != parameters.keys():
        raise RecordError(f"{path} holds other parameters than this run trains: delete it to start from the beginning.")
    method.load_state_dict(_below("method", tensors))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    for key, value in _below("optimizer", tensors).items():
        field, name = key.split("/", 1)
        parameter = parameters[name]
        # Adam's step counter stays where the optimiser made it: on the CPU.
        optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return progress


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries `prefix/...`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}
