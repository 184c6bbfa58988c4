"""Where a run computes: device and precision, and what saves memory there."""

import itertools
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration
from filelock import FileLock, Timeout

from surm.config.schema import RunConfig
from surm.shared.errors import ConfigError, StorageError
from surm.shared.processes import several


def accelerator(config: RunConfig) -> Accelerator:
    """Device and precision; accelerate's own choice is CUDA, then MPS, then the CPU."""
    device, trainer = config.device, config.trainer
    # accelerate keeps the first run's precision and device for the whole process: a sweep may change both.
    AcceleratorState._reset_state(reset_partial_state=not several())
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    try:
        chosen = Accelerator(
            cpu=on_cpu,
            dataloader_config=DataLoaderConfiguration(non_blocking=not on_cpu and torch.cuda.is_available()),
            mixed_precision=trainer.precision,
            gradient_accumulation_steps=trainer.gradient_accumulation,
        )
    except ValueError as error:
        raise ConfigError(f"trainer.precision={trainer.precision} does not work on this machine: {error}") from None
    if trainer.batch_size < chosen.num_processes:
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size}: give at least {chosen.num_processes}, one example for each "
            "process; the batch is that of all processes together."
        )
    if device not in ("auto", chosen.device.type):
        raise ConfigError(f"device={device}: this machine offers {chosen.device.type}; choose that or auto.")
    return chosen


_OWN: list[FileLock] = []  # held for the life of the process


def own_gpu(folder: Path | None = None) -> None:
    """Take one of the visible GPUs for the life of this process: CUDA sees no other, and other callers take the others.

    Where there are more processes than GPUs, they share them evenly. Call before anything asks CUDA for its devices.

    folder: holds a locked file for each GPU taken; by default in this machine's own temporary folder.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]
    if _OWN or len(names) < 2:
        return
    folder = folder or Path(tempfile.gettempdir()) / f"surm-gpus-{os.getuid()}"
    _own_folder(folder)
    for name, share in ((name, share) for share in itertools.count() for name in names):
        lock = FileLock(folder / f"{name}.{share}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _OWN.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return


def _own_folder(folder: Path) -> None:
    """Make a folder that nobody else can write to, or see that it is one: others know its name.

    Raises:
        StorageError: somebody else was there first, or a link leads elsewhere.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:  # a file or a link to nowhere
        pass
    except OSError as error:
        raise StorageError(f"{folder} cannot be made ({error.strerror}): set TMPDIR to a folder of your own.") from None
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StorageError(
            f"{folder} is no folder of this user alone: remove it, or set TMPDIR to a folder of your own."
        )


def checkpoint_activations(module: Any) -> None:
    """Keep the inputs of the blocks alone for the backward pass, and compute the rest again there.

    Raises:
        ConfigError: neither timm nor transformers offers it for this model.
    """
    if hasattr(module, "set_grad_checkpointing"):
        module.set_grad_checkpointing(True)
    elif getattr(module, "supports_gradient_checkpointing", False):
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        raise ConfigError(f"trainer.gradient_checkpointing=true: {type(module).__name__} does not offer it.")


def out_of_memory(config: RunConfig) -> str:
    """The sentence that says which setting to change."""
    trainer = config.trainer
    return (
        f"the device is out of memory at trainer.batch_size={trainer.batch_size}: halve it and double "
        f"trainer.gradient_accumulation={trainer.gradient_accumulation}, which trains the same"
        + ("." if trainer.gradient_checkpointing else ", or set trainer.gradient_checkpointing=true.")
    )
