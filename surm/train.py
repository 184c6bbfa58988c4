"""One run: fine-tune a backbone on a task with one method, and leave a record. Readable from top to bottom."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surm import signature as identity
from surm.checkpoint import Progress, load_checkpoint, save_checkpoint
from surm.claim import Claim
from surm.config import ConfigError, RunConfig
from surm.data import Task, data_hash, load_task
from surm.data.encode import encode
from surm.data.order import EpochBatches
from surm.device import accelerator, checkpoint_activations, out_of_memory
from surm.evaluate import Answers, evaluate, task_loss
from surm.interrupt import Interrupted, Stop, stop_at_signal
from surm.memory import measure_peak
from surm.methods import (
    after_step,
    apply_method,
    count_trainable,
    extra_loss,
    has_hidden_state,
    trainable_parameters,
)
from surm.models import load_backbone, weights_hash
from surm.models.backbone import Backbone
from surm.optim import parameter_groups, rate_factor
from surm.record import Record, RecordError, read_record, run_directory, where, write_json
from surm.tracking import start_tracker

Report = Callable[[int, int, dict[str, float]], None]  # (step, of steps, loss and metric)


class RunError(RuntimeError):
    """A run that cannot go on; the message is one sentence and stands in the record."""


def run(config: RunConfig, *, report: Report | None = None, say: Callable[[str], None] = print) -> Record:
    """Run, resume or find a run; the same question is answered once.

    Args:
        config: a checked configuration.
        report: called after each step, for progress bars.
        say: prints one line.

    Returns:
        The run's record, with status `finished`.

    Raises:
        RecordError: data or weights differ from those of the finished run, or a file is damaged.
        RunError: the loss is no longer finite; the record says so.
        Interrupted: a signal came; the checkpoint is written, or, in the last step, the finished record.
    """
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    question = identity.asked(config)
    name = identity.signature(question)
    folder = run_directory(config.output_dir, name)
    hashes = {
        "data": data_hash(config.dataset.name, **config.dataset.origin()),
        "weights": weights_hash(config.model.name, **config.model.origin()),
    }

    record = read_record(folder / "record.json")
    if record is not None and record["status"] == "finished":
        _refuse_other_content(record, hashes)
        say(f"run {name} is finished already: {folder / 'record.json'}")
        return record

    with Claim(folder):
        tracker = start_tracker(
            vars(config.tracking),
            signature=name,
            group=config.table.name,
            config=question,
            tags=config.tracking.tags,
            directory=Path(config.output_dir) / "wandb",
        )
        loop = Loop(config, question, folder, tracker.log, report, say)
        status, error = "failed", None
        try:
            with stop_at_signal(loop.stop):
                loop.train()
            status = "finished"
        except Interrupted:
            status = "interrupted"
            raise
        except (RunError, torch.OutOfMemoryError) as failure:
            error = out_of_memory(config) if isinstance(failure, torch.OutOfMemoryError) else str(failure)
            raise RunError(error) from None
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            raise
        finally:
            record = {
                "signature": name,
                "status": status,
                "asked": question,
                "happened": loop.happened() | {"error": error},
                "where": where(str(loop.accelerator.device), hashes),
            }
            if status == "finished":
                loop.save_results()
            write_json(folder / "record.json", record)
            if status in ("finished", "failed"):
                loop.checkpoint.unlink(missing_ok=True)
            tracker.finish(record["happened"], status)
    if loop.stop.requested:  # in its last step: a sweep must not go on with the next run
        raise Interrupted(f"run {name} is finished; nothing after it was started.")
    return record


def _refuse_other_content(record: Record, hashes: dict[str, str]) -> None:
    for what, now in hashes.items():
        then = record["where"]["content_hashes"][what]
        if then != now:
            raise RecordError(
                f"run {record['signature']} is finished with other {what}: its hash was {then[:16]}, that of what is "
                f"given now is {now[:16]}; restore the {what} or move the run's folder away."
            )


class Loop:
    """The training loop of one run."""

    def __init__(
        self,
        config: RunConfig,
        question: dict[str, Any],
        folder: Path,
        log: Callable[[dict[str, float], int], None],
        report: Report | None,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.question, self.folder = config, question, folder
        self.log, self.report, self.say = log, report, say
        self.checkpoint = folder / "checkpoint.safetensors"
        self.stop = Stop()
        trainer, data = config.trainer, config.dataset
        self.accelerator = accelerator(config)
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
            module = apply_method(self.backbone, question["structure"], question.get("placement"), self.steps)
        except ValueError as error:
            raise ConfigError(f"structure={config.structure.name} on model={config.model.name}: {error}") from None
        self.counts = count_trainable(module, self.backbone.head)
        if trainer.gradient_checkpointing:
            checkpoint_activations(self.backbone.module)

        train = encode(self.task.train, self.backbone)
        self.order = EpochBatches(len(train), trainer.batch_size, config.seed)
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
            lr=question["optim"]["lr"],
        )
        self.module, self.optimizer, self.training, *loaders = self.accelerator.prepare(
            module, optimizer, training, *evaluating
        )
        self.evaluating = dict(zip(splits, loaders, strict=True))
        if trainer.compile:
            self.module.compile()
        self.progress = Progress()
        self.step_seconds: list[float] = []
        self.peak_memory_bytes: int | None = None
        self.answers = Answers()

    def train(self) -> None:
        """All steps that are left, an evaluation after each epoch, a checkpoint every few steps."""
        if self.checkpoint.exists():
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
                if self.stop.requested:
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
        batches = iter(self.training)
        while True:
            # The second step of a process is measured: by then the optimiser's state exists.
            measured = len(self.step_seconds) == 1 and self.peak_memory_bytes is None
            meter = measure_peak(self.module, self.optimizer, self.accelerator.device) if measured else nullcontext()
            for group in self.optimizer.param_groups:
                group["lr"] = self.question["optim"]["lr"] * rate_factor(step, self.steps, self.config.optim)
            with meter as peak:
                for batch in batches:
                    with self.accelerator.accumulate(self.module):
                        loss = self._loss(batch)
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
            value = torch.stack(losses).mean().item()
            losses.clear()
            step += 1
            if not math.isfinite(value):
                raise RunError(f"the loss is {value} at step {step}: lower optim.lr={self.question['optim']['lr']}.")
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

    def _save(self) -> None:
        if has_hidden_state(self._unwrapped()):
            return  # such a run starts again: a checkpoint would resume it with another schedule of ranks
        scaler = self.accelerator.scaler
        self.progress.scaler = scaler.state_dict() if scaler is not None else None
        save_checkpoint(self.checkpoint, self._unwrapped(), self.optimizer.optimizer, self.progress)

    def _resume(self) -> None:
        self.progress = load_checkpoint(self.checkpoint, self._unwrapped(), self.optimizer.optimizer)
        if self.progress.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
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
        if isinstance(module, PeftModel):
            module.save_pretrained(str(self.folder / "adapter"))
        else:
            trained = {name: parameter.detach().contiguous() for name, parameter in trainable_parameters(module)}
            save_file(trained, self.folder / "trained.safetensors")
        answers = {"labels": self.answers.labels, "predictions": self.answers.predictions}
        write_json(self.folder / "predictions.json", answers)
