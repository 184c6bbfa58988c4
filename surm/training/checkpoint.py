"""Checkpoints: everything a run needs to go on bit for bit, in one safetensors file (no pickle), renamed into place."""

import json
import math
from collections.abc import Iterator, Mapping
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
    epoch_seconds: list[list[float]] = field(default_factory=list)  # of each epoch's steps, and how many these are
    stateless: list[str] = field(default_factory=list)  # trained parameters that had no gradient yet


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
    progress.stateless = [name for name, parameter in method.trained_parameters() if not optimizer.state.get(parameter)]
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
    except (SafetensorError, ValueError, RecursionError, KeyError, TypeError):
        raise RecordError(
            f"{path} is not a whole checkpoint: delete it to start this run from its beginning."
        ) from None


def load_checkpoint(path: Path, method: Method, optimizer: torch.optim.Optimizer, steps: int) -> Progress:
    """Put a checkpoint's state back in place and return its `progress`; all of it is checked before.

    Args:
        path: of the file.
        method: applied to the model.
        optimizer: over the method's trained parameters, which took no step yet.
        steps: of the whole run.

    Raises:
        RecordError: the file cannot be read or is not of this run; nothing is then changed.
    """
    with _open(path) as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)

    parameters, saved = dict(method.trained_parameters()), _below("parameter", tensors)
    state = _by_parameter(_below("optimizer", tensors))
    try:
        _check_progress(progress, steps)
        _check_parameters(parameters, saved)
        _check_optimizer(parameters, state, progress)
        _check_random(tensors)
        method.load_state_dict(_below("method", tensors))  # checks before it changes anything
    except (ValueError, TypeError, KeyError) as error:
        reason = (
            str(error) if isinstance(error, ValueError) else "its progress or the method's state is of another form"
        )
        raise RecordError(
            f"{path} is no checkpoint of this run ({reason}): delete it to start from the beginning."
        ) from None
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    for name, fields in state.items():
        parameter = parameters[name]
        for key, value in fields.items():
            # Adam's step counter stays where the optimiser made it: on the CPU.
            optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return progress


# What a checkpoint must be. Each raises ValueError with what is wrong in a few words, or a TypeError of its own.


def _check_progress(progress: Progress, steps: int) -> None:
    step = progress.step
    if not _is_step(step, steps - 1):
        raise ValueError(f"it says step {step!r} of {steps}")
    if not _is_number(progress.seconds) or progress.seconds < 0:
        raise ValueError(f"it says seconds={progress.seconds!r}")
    if not _is_steps(progress.resumed_from_steps, step):
        raise ValueError("its resumed_from_steps are not steps in order")
    if not all(len(of_epoch) == 2 and all(map(_is_number, of_epoch)) for of_epoch in progress.epoch_seconds):
        raise ValueError("the seconds of its epochs are no numbers")
    if progress.scaler is not None and not _are_numbers(progress.scaler):
        raise ValueError("its scaler does not hold numbers")
    rows = progress.history
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_number(row.get("epoch")) for row in rows):
        raise ValueError("its history is no list of rows with an epoch")
    if not _is_steps([row.get("step") for row in rows], step):
        raise ValueError("the steps of its history are not in order")
    for row in rows:
        values = {key: value for key, value in row.items() if key != "evaluation"}
        if not _are_numbers(values) or not _are_numbers(row.get("evaluation", {"loss": 0.0})):
            raise ValueError(f"its history has no numbers at step {row['step']}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, dict) and bool(values) and all(map(_is_number, values.values()))


def _is_step(value: Any, last: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= last


def _is_steps(values: Any, last: int) -> bool:
    return isinstance(values, list) and all(_is_step(value, last) for value in values) and values == sorted(values)


def _check_parameters(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    if saved.keys() != parameters.keys():
        raise ValueError("it holds other parameters than this run trains")
    for name, parameter in parameters.items():
        _check_like(name, saved[name], parameter)


def _check_optimizer(
    parameters: Mapping[str, Tensor], state: Mapping[str, dict[str, Tensor]], progress: Progress
) -> None:
    """Of AdamW: for each trained parameter but those that never had a gradient."""
    if not isinstance(progress.stateless, list) or state.keys() != parameters.keys() - set(progress.stateless):
        raise ValueError("its optimiser's state is of other parameters than this run trains")
    for name, fields in state.items():
        if fields.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"its optimiser's state of {name} is not AdamW's")
        taken = fields.pop("step")
        for key, value in fields.items():
            _check_like(f"{key} of {name}", value, parameters[name])
        fields["step"] = taken
        if taken.shape != () or taken.dtype != torch.float32 or not _is_step(_whole(taken), progress.step):
            raise ValueError(f"its optimiser took a wrong number of steps with {name}")
        if (fields["exp_avg_sq"] < 0).any():
            raise ValueError(f"the optimiser's squares of {name} are negative")


def _whole(value: Tensor) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() else number


def _check_like(name: str, tensor: Tensor, parameter: Tensor) -> None:
    if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
        found, expected = (f"{str(one.dtype)[6:]} {tuple(one.shape)}" for one in (tensor, parameter))
        raise ValueError(f"{name} is {found}, not {expected}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} is not finite")


def _check_random(tensors: Mapping[str, Tensor]) -> None:
    prefixes = ("parameter/", "optimizer/", "method/")
    other = [key for key in tensors if not key.startswith(prefixes) and key not in ("random.cpu", "random.cuda")]
    if other:
        raise ValueError(f"it holds {other[0]!r}, which no checkpoint does")
    try:
        torch.Generator().set_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.Generator("cuda").set_state(tensors["random.cuda"])
    except (KeyError, RuntimeError, TypeError):
        raise ValueError("it has no state of random numbers") from None


def _by_parameter(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of `field/name`: by name, the fields."""
    fields: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        field, _, name = key.partition("/")
        fields.setdefault(name, {})[field] = value
    return fields


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries `prefix/...`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}
