"""The training loop: fine-tune a backbone on a task with one method. Readable from top to bottom."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import set_seed
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surm.config.run import Run
from surm.data import Task, load_task
from surm.data.encode import encode
from surm.data.order import EpochBatches
from surm.methods.apply import (
    after_step,
    apply_method,
    count_trainable,
    extra_loss,
    has_hidden_state,
    trainable_parameters,
)
from surm.models import load_backbone
from surm.models.backbone import Backbone
from surm.records.claim import Claim
from surm.records.storage import storing, write_json
from surm.shared.errors import ConfigError, Interrupted, RunError
from surm.shared.processes import is_main, main_decides
from surm.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from surm.training.device import checkpoint_activations
from surm.training.evaluate import Answers, evaluate, task_loss
from surm.training.interrupt import Stop
from surm.training.memory import measure_peak
from surm.training.optim import parameter_groups, rate_factor

Report = Callable[[int, int, dict[str, float]], None]  # (step, of steps, loss and metric)


class Loop:
    """The training loop of one run, in each of its processes."""

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        claim: Claim,
        log: Callable[[dict[str, float], int], None],
        report: Report | None,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.config, self.claim, self.folder = run, run.config, claim, run.folder
        self.log, self.report, self.say = log, report, say
        self.stop = Stop()
        config = run.config
        trainer, data = config.trainer, config.dataset
        self.accelerator = accelerator
        self.task: Task = load_task(
            data.name, evaluate_on=data.evaluate_on, fraction=data.fraction, seed=config.seed, **data.origin()
        )
        batches = math.ceil(len(self.task.train) / trainer.batch_size)
        self.steps_per_epoch = math.ceil(batches / trainer.gradient_accumulation)
        self.steps = min(trainer.epochs * self.steps_per_epoch, trainer.max_steps or 10**12)

        set_seed(config.seed)
        try:
            self.backbone: Backbone = load_backbone(
                config.model.name,
                num_labels=self.task.num_labels,
                image_size=config.model.image_size,
                **config.model.origin(),
            )
            self.total_parameters = sum(parameter.numel() for parameter in self.backbone.module.parameters())
            module = apply_method(self.backbone, run.asked["structure"], run.asked.get("placement"), self.steps)
        except ValueError as error:
            raise ConfigError(f"structure={config.structure.name} on model={config.model.name}: {error}") from None
        self.counts = count_trainable(module, self.backbone.head)
        if trainer.gradient_checkpointing:
            checkpoint_activations(self.backbone.module)

        train = encode(self.task.train, self.backbone)
        self.order = EpochBatches(
            len(train), trainer.batch_size, config.seed, accelerator.process_index, accelerator.num_processes
        )
        # A generator of its own: an iterator draws a number when it starts, and a resumed run starts one more.
        loader = partial(DataLoader, collate_fn=train.collate, num_workers=trainer.workers, generator=torch.Generator())
        training = loader(train, batch_sampler=self.order)
        splits = {"": self.task.evaluation, **self.task.also}
        evaluating = [
            loader(encode(split, self.backbone), batch_size=trainer.eval_batch_size) for split in splits.values()
        ]
        optimizer = torch.optim.AdamW(
            parameter_groups(module, config.optim),
            betas=(config.optim.beta1, config.optim.beta2),
            lr=run.rate,
        )
        self.module, self.optimizer, *loaders = accelerator.prepare(module, optimizer, *evaluating)
        # `order` has divided the batches among the processes already.
        self.training = prepare_data_loader(training, accelerator.device, 1, 0, put_on_device=True)
        if accelerator.num_processes > 1:  # dropout must differ among them
            torch.manual_seed(_process_seed(config.seed, accelerator.process_index, step=0))
        self.evaluating = dict(zip(splits, loaders, strict=True))
        if trainer.compile:
            self.module.compile()
        self.progress = Progress()
        self.step_seconds: list[float] = []
        self.peak_memory_bytes: int | None = None
        self.answers = Answers()

    def train(self) -> None:
        """All steps that are left, an evaluation after each epoch, a checkpoint every few steps."""
        if main_decides(self.folder.checkpoint.exists):
            self._resume()
        started = time.perf_counter() - self.progress.seconds
        step = self.progress.step
        while step < self.steps:
            self.order.epoch, done = divmod(step, self.steps_per_epoch)
            self.order.start = done * self.config.trainer.gradient_accumulation
            for loss in self._epoch(step):
                step += 1
                self.progress.step, self.progress.seconds = step, time.perf_counter() - started
                if step % self.config.trainer.log_every == 0 or step == 1:
                    self._note({"loss": loss, "lr": self.optimizer.param_groups[0]["lr"]})
                if step % (self.steps_per_epoch * self.config.trainer.evaluate_every) == 0 or step == self.steps:
                    self._note({"evaluation": self.evaluate()})
                if step == self.steps:
                    break
                if self._asked_to_stop():
                    self._save()
                    raise Interrupted(
                        f"stopped after step {step} of {self.steps}; the same command goes on from there."
                    )
                if step % self.config.trainer.checkpoint_every == 0:
                    self._save()
        self.progress.seconds = time.perf_counter() - started

    def _epoch(self, step: int) -> Iterator[float]:
        """The optimiser steps of the rest of one epoch; yields each step's mean loss."""
        self.module.train()
        begun = time.perf_counter()
        losses: list[Tensor] = []
        batches = enumerate(self.training, self.order.start)
        while True:
            # The second step of a process is measured: by then the optimiser's state exists.
            measured = len(self.step_seconds) == 1 and self.peak_memory_bytes is None
            meter = measure_peak(self.module, self.optimizer, self.accelerator.device) if measured else nullcontext()
            for group in self.optimizer.param_groups:
                group["lr"] = self.run.rate * rate_factor(step, self.steps, self.config.optim)
            with meter as peak:
                for number, batch in batches:
                    with self.accelerator.accumulate(self.module):
                        loss = self._loss(batch)
                        if self.order.processes > 1:
                            loss = loss * self.order.weight(number)
                        self.accelerator.backward(loss)
                        if self.accelerator.sync_gradients and self.config.optim.max_grad_norm:
                            self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.optim.max_grad_norm)
                        self.optimizer.step()
                        if self.accelerator.sync_gradients:
                            after_step(self._unwrapped(), step)
                        self.optimizer.zero_grad()
                    losses.append(loss.detach())
                    if self.accelerator.sync_gradients:
                        break
                else:
                    return
            if peak is not None:
                self.peak_memory_bytes = peak.bytes
            value = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            losses.clear()
            step += 1
            if not math.isfinite(value):
                raise RunError(f"the loss is {value} at step {step}: lower optim.lr={self.run.rate}.")
            self.step_seconds.append(time.perf_counter() - begun)
            if self.report:
                self.report(step, self.steps, {"loss": value} | self._last_metric())
            yield value
            self.module.train()
            begun = time.perf_counter()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch.pop("labels")
        loss = task_loss(self.task, self._logits(batch), labels)
        more = extra_loss(self._unwrapped())
        return loss if more is None else loss + more

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        output = self.module(**inputs)
        logits: Tensor = getattr(output, "logits", output)
        return logits.float()

    def evaluate(self) -> dict[str, float]:
        """Metrics and mean loss on the evaluation split; its predictions are kept for the record.

        A further split, such as MNLI's mismatched one, is looked at after the last step alone; its name stands in
        brackets.
        """
        self.module.eval()
        gather = self.accelerator.gather_for_metrics
        self.answers = evaluate(self.task, self.evaluating[""], self._logits, gather)
        found = self.answers.metrics
        for name in self.task.also if self.progress.step == self.steps else ():
            more = evaluate(self.task, self.evaluating[name], self._logits, gather).metrics
            found = found | {f"{metric} ({name})": value for metric, value in more.items() if metric != "loss"}
        return found

    def _note(self, row: dict[str, Any]) -> None:
        step = self.progress.step
        row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4)} | row
        self.progress.history.append(row)
        if "evaluation" in row:
            self.log({f"evaluation/{key}": value for key, value in row["evaluation"].items()}, step)
            metric, found = self.task.primary_metric, row["evaluation"]
            on = self.config.dataset.evaluate_on
            self.say(f"  epoch {row['epoch']:g}: {metric} {found[metric]:.4f}, loss {found['loss']:.4f} on {on}")
        else:
            self.log({key: value for key, value in row.items() if key != "step"}, step)

    def _last_metric(self) -> dict[str, float]:
        rows = [row["evaluation"] for row in self.progress.history if "evaluation" in row]
        return {self.task.primary_metric: rows[-1][self.task.primary_metric]} if rows else {}

    # --- checkpoints and results -------------------------------------------------------------------------------------

    def _unwrapped(self) -> nn.Module:
        module: nn.Module = self.accelerator.unwrap_model(self.module)
        return module

    def _asked_to_stop(self) -> bool:
        """Whether a signal reached any of the processes: they stop after the same step."""
        if self.order.processes == 1:
            return self.stop.requested
        requested = torch.tensor(float(self.stop.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(requested, "sum").item())

    def _save(self) -> None:
        if not is_main() or has_hidden_state(self._unwrapped()):
            return  # with hidden state a run starts again: a checkpoint would resume it with another schedule of ranks
        self.claim.confirm()
        scaler = self.accelerator.scaler
        self.progress.scaler = scaler.state_dict() if scaler is not None else None
        save_checkpoint(self.folder.checkpoint, self._unwrapped(), self.optimizer.optimizer, self.progress)

    def _resume(self) -> None:
        self.progress = load_checkpoint(self.folder.checkpoint, self._unwrapped(), self.optimizer.optimizer)
        if self.progress.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        if not is_main():  # the checkpoint holds the main process's random numbers
            torch.manual_seed(_process_seed(self.config.seed, self.order.process, self.progress.step))
        self.progress.resumed_from_steps.append(self.progress.step)
        self.say(f"  resumed from step {self.progress.step} of {self.steps}")

    def happened(self) -> dict[str, Any]:
        """The `happened` block of the record."""
        evaluations = [row for row in self.progress.history if "evaluation" in row]
        metric = self.task.primary_metric
        best = max(evaluations, key=lambda row: row["evaluation"][metric], default=None)
        return {
            "metrics": {k: v for k, v in evaluations[-1]["evaluation"].items() if k != "loss"} if evaluations else {},
            "primary_metric": metric,
            "best_epoch_metrics": best["evaluation"] | {"epoch": best["epoch"]} if best else {},
            "evaluation_examples": len(self.task.evaluation.labels),
            "baselines": self.task.baselines,
            "trainable_parameters": self.counts[0],
            "head_parameters": self.counts[1],
            "total_parameters": self.total_parameters,
            "history": self.progress.history,
            "resumed_from_steps": self.progress.resumed_from_steps,
            "steps": self.progress.step,
            "seconds_per_step": statistics.median(self.step_seconds) if self.step_seconds else None,
            "seconds": self.progress.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def save_results(self) -> None:
        """The trained adapter in PEFT's format (else the trained parameters), and each example's prediction."""
        module = self._unwrapped()
        with storing(self.folder.path):
            if isinstance(module, PeftModel):
                module.save_pretrained(str(self.folder.adapter))
            else:
                trained = {name: parameter.detach().contiguous() for name, parameter in trainable_parameters(module)}
                save_file(trained, self.folder.trained)
        answers = {"labels": self.answers.labels, "predictions": self.answers.predictions}
        write_json(self.folder.predictions, answers)


def _process_seed(seed: int, process: int, step: int) -> int:
    """A seed for the random numbers of one of several processes from a step on."""
    return (seed * 1_000_003 + step) * 1_009 + process
