"""Where a run computes: device and precision, and what saves memory there."""

from typing import Any

from accelerate import Accelerator

from surm.config import ConfigError, RunConfig


def accelerator(config: RunConfig) -> Accelerator:
    """Device and precision; accelerate's own choice is CUDA, then MPS, then the CPU."""
    device, trainer = config.device, config.trainer
    try:
        found = Accelerator(
            cpu=device == "cpu",
            mixed_precision=trainer.precision,
            gradient_accumulation_steps=trainer.gradient_accumulation,
        )
    except ValueError as error:
        raise ConfigError(f"trainer.precision={trainer.precision} does not work on this machine: {error}") from None
    if device not in ("auto", found.device.type):
        raise ConfigError(f"device={device}: this machine offers {found.device.type}; choose that or auto.")
    return found


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
