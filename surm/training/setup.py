"""What a run needs before its first step: data in their order, the model on its device, the optimiser."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, Subset

from surm.config.run import Run
from surm.config.schema import RunConfig
from surm.data import Example, Examples, Task, data_predicts, load_task
from surm.data.order import EpochBatches
from surm.methods.base import Method
from surm.methods.registry import make_method, method_class
from surm.models import load_backbone, skeleton
from surm.shared.errors import ConfigError, UserError, first_line
from surm.training.device import checkpoint_activations
from surm.training.optim import parameter_groups


@dataclass
class Finished:
    """Batches whose inputs are made where the batch lies: pixels travel as grey levels, a quarter of the bytes.

    `order` are the places in the split of their examples, where they have another order.
    """

    batches: Any
    finish: Callable[[Example], Example]
    order: Sequence[int] | None = None

    def __iter__(self) -> Iterator[Example]:
        return map(self.finish, self.batches)


@dataclass
class Setup:
    """What a training loop works with."""

    task: Task
    method: Method  # applied to the model; `method.module` is `module` without what accelerate puts around it
    module: nn.Module
    total_parameters: int  # of the backbone with its head, before the method adds to it
    optimizer: Any  # accelerate's, around AdamW; a group's `initial_lr` is its rate at the end of the warm-up
    order: EpochBatches
    batches: Finished  # of one epoch, in `order`
    evaluating: dict[str, Finished]  # batches of the reported split, "", and of further ones by their names
    evaluation_examples: int  # of the reported split
    steps_per_epoch: int
    steps: int


def check_fit(run: Run) -> None:
    """Try a method that may not fit on the model without its weights, before these are read or fetched.

    Raises:
        ConfigError: it does not fit the model, or a run of `trainer.max_steps` at most.
    """
    config, model = run.config, run.config.model
    if not method_class(config.structure.name).may_not_fit:
        return
    predicts = data_predicts(config.dataset.name)
    backbone = skeleton(model.name, num_labels=2, predicts=predicts, image_size=model.image_size, **model.origin())
    with _fitting(config), torch.random.fork_rng(devices=[]):
        steps = config.trainer.max_steps or 10**6  # those of whole epochs are known with the data
        make_method(run.asked["structure"]).apply(backbone, run.asked.get("placement"), steps)


@contextmanager
def _fitting(config: RunConfig) -> Iterator[None]:
    """What a method raises where it does not fit, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"structure={config.structure.name} on model={config.model.name}: {first_line(error)}."
        ) from None


def prepare(run: Run, accelerator: Accelerator) -> Setup:
    """Load, freeze, adapt and place everything that `run` asks for; sets the global random numbers by its seed.

    Raises:
        ConfigError: the method does not fit the model.
    """
    config, trainer = run.config, run.config.trainer
    data = config.dataset
    task = load_task(data.name, evaluate_on=data.evaluate_on, fraction=data.fraction, seed=config.seed, **data.origin())
    set_seed(config.seed)
    method = make_method(run.asked["structure"])
    model, origin = config.model, config.model.origin()
    backbone = load_backbone(
        model.name,
        num_labels=task.num_labels,
        predicts=task.objective.predicts,
        image_size=model.image_size,
        dropout=model.dropout,
        **origin,
    )
    train = task.objective.examples(task.train, backbone)
    steps_per_epoch = math.ceil(math.ceil(len(train) / trainer.batch_size) / trainer.gradient_accumulation)
    steps = min(trainer.epochs * steps_per_epoch, trainer.max_steps or 10**12)
    if task.memorised and trainer.max_steps:
        steps = trainer.max_steps
    total_parameters = sum(parameter.numel() for parameter in backbone.module.parameters())
    with _fitting(config):
        module = method.apply(backbone, run.asked.get("placement"), steps)
    if trainer.gradient_checkpointing:
        checkpoint_activations(backbone.module)
    optim = config.optim
    optimizer = torch.optim.AdamW(parameter_groups(method, optim), betas=(optim.beta1, optim.beta2), lr=run.rate)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]

    process, processes = accelerator.process_index, accelerator.num_processes
    if steps >= steps_per_epoch and processes == 1:  # all of them will be asked for
        train.fill()
    order = EpochBatches(len(train), trainer.batch_size, config.seed, process, processes, train.lengths)
    # A generator of its own: an iterator draws a number when it starts, and a resumed run starts one more.
    cuda = accelerator.device.type == "cuda"  # where a batch is copied while the device computes
    loader = partial(
        DataLoader,
        collate_fn=train.collate,
        num_workers=trainer.workers,
        generator=torch.Generator(),
        pin_memory=cuda,
    )
    splits = {
        name: task.objective.examples(split, backbone) for name, split in {"": task.evaluation, **task.also}.items()
    }
    orders = {name: _by_length(examples) for name, examples in splits.items()}
    evaluating = [
        loader(
            examples.unfinished if (of := orders[name]) is None else Subset(examples.unfinished, of),
            batch_size=trainer.eval_batch_size,
        )
        for name, examples in splits.items()
    ]
    module, optimizer, *evaluating = accelerator.prepare(module, optimizer, *evaluating)
    # `order` has divided the batches among the processes already.
    batches = prepare_data_loader(
        loader(train.unfinished, batch_sampler=order), accelerator.device, 1, 0, put_on_device=True, non_blocking=cuda
    )
    if processes > 1:  # dropout must differ among them
        torch.manual_seed(process_seed(config.seed, process, step=0))
    if trainer.compile:
        module.compile()
    return Setup(
        task=task,
        method=method,
        module=module,
        total_parameters=total_parameters,
        optimizer=optimizer,
        order=order,
        batches=Finished(batches, train.finish),
        evaluating={
            name: Finished(of, train.finish, orders[name]) for name, of in zip(splits, evaluating, strict=True)
        },
        evaluation_examples=len(splits[""]),
        steps_per_epoch=steps_per_epoch,
        steps=steps,
    )


def _by_length(examples: Examples) -> list[int] | None:
    """The order of the examples in which batches have little padding."""
    lengths = examples.lengths
    return None if lengths is None else sorted(range(len(examples)), key=lengths.__getitem__)


def process_seed(seed: int, process: int, step: int) -> int:
    """A seed for the random numbers of one of several processes from a step on."""
    return (seed * 1_000_003 + step) * 1_009 + process
