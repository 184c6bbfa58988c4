"""The training loop: fine-tune a backbone on a task with one method. Readable from top to bottom."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from surm.config.run import Run
from surm.data import Answers
from surm.records.claim import Claim
from surm.records.storage import storing
from surm.shared.errors import Interrupted
from surm.shared.processes import is_main, main_decides
from surm.training.checkpoint import load_checkpoint, save_checkpoint
from surm.training.evaluate import evaluate
from surm.training.interrupt import Stop
from surm.training.losses import Losses
from surm.training.optim import rate_factor
from surm.training.outcome import Outcome
from surm.training.setup import prepare, process_seed

Report = Callable[[int, int, dict[str, float]], None]  # (step, of steps, loss and metric)


class Loop:
    """The training loop of one run, in each of its processes."""

    def __init__(
        self,
        run: Run,
        accelerator: Accelerator,
        claim: Claim,
        report: Report | None,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.config, self.accelerator, self.claim = run, run.config, accelerator, claim
        self.report, self.say = report, say
        self.log: Callable[[dict[str, float], int], None] = lambda values, step: None  # a tracker's
        self.stop = Stop()
        self.setup = setup = prepare(run, accelerator)
        self.task, self.method, self.steps = setup.task, setup.method, setup.steps
        self.module, self.optimizer, self.order = setup.module, setup.optimizer, setup.order
        self.outcome = Outcome(setup, accelerator.device)
        self.losses = Losses(accelerator.device, run.rate)

    def train(self) -> None:
        """All steps that are left after `resume`, an evaluation after each epoch, a checkpoint every few steps."""
        trainer, progress = self.config.trainer, self.outcome.progress
        started = time.perf_counter() - progress.seconds
        batches = self._batches(progress.step)
        for step in range(progress.step + 1, self.steps + 1):
            with self.outcome.measured(step):
                self.losses.add(step, self.step(step - 1, batches))
            logs = step % trainer.log_every == 0 or step == 1
            ends_epoch = step % self.setup.steps_per_epoch == 0 or step == self.steps
            if logs or ends_epoch or self._checkpoint_is_due(step):
                with self.outcome.waiting():  # a loss that is not finite goes no further than this
                    self.losses.read()
            progress.step, progress.seconds = step, time.perf_counter() - started
            if self.report:
                self.report(step, self.steps, {"loss": self.losses.last} | self.outcome.last_metric())
            if logs:
                self._note(loss=self.losses.last, lr=self.optimizer.param_groups[0]["lr"])
            if step == self.steps:
                self.method.finish()
            if step % (self.setup.steps_per_epoch * trainer.evaluate_every) == 0 or step == self.steps:
                self._note(evaluation=self.evaluate())
            if step < self.steps:
                self._keep(step)
        progress.seconds = time.perf_counter() - started

    def step(self, step: int, batches: Iterator[tuple[int, dict[str, Tensor]]]) -> Tensor:
        """Take as many batches as an optimiser step (from 0) accumulates, and move the parameters; the mean loss.

        The loss stays on the device, for which nothing here waits.
        """
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor(step, self.steps, self.config.optim)
        losses: list[Tensor] = []
        for number, batch in batches:
            with self.accelerator.accumulate(self.module):
                loss = self._loss(batch, number)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self._after_backward(step)
                self.optimizer.step()
                if self.accelerator.sync_gradients:
                    self.method.after_step(step)
                self.optimizer.zero_grad()
            losses.append(loss.detach())
            if self.accelerator.sync_gradients:
                break
        mean: Tensor = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
        return mean

    def _batches(self, step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Batches without end from a step on, each with its number in its epoch."""
        epoch, done = divmod(step, self.setup.steps_per_epoch)
        while True:
            self.order.epoch, self.order.start = epoch, done * self.config.trainer.gradient_accumulation
            yield from enumerate(self.setup.batches, self.order.start)
            epoch, done = epoch + 1, 0

    def _loss(self, batch: dict[str, Tensor], number: int) -> Tensor:
        with self.accelerator.autocast():
            loss = self.task.objective.loss(self.module, batch)
        more = self.method.extra_loss()
        loss = loss if more is None else loss + more
        return loss * self.order.weight(number) if self.order.processes > 1 else loss

    def _after_backward(self, step: int) -> None:
        self.accelerator.unscale_gradients()
        self.method.after_backward(step)
        if self.config.optim.max_grad_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optim.max_grad_norm)

    def evaluate(self) -> dict[str, float]:
        """Metrics and mean loss on the evaluation split; its predictions are kept for the record.

        A further split, such as MNLI's mismatched one, is looked at after the last step alone; its name stands in
        brackets.
        """
        self.module.eval()
        self.outcome.answers = self._answers("")
        metrics = dict(self.outcome.answers.metrics)
        for name in self.task.also if self.outcome.progress.step == self.steps else ():
            more = self._answers(name).metrics
            metrics |= {f"{metric} ({name})": value for metric, value in more.items() if metric != "loss"}
        return metrics

    def _answers(self, split: str) -> Answers:
        batches, gather = self.setup.evaluating[split], self.accelerator.gather_for_metrics
        with self.accelerator.autocast():
            return evaluate(self.task.objective, batches, self.module, gather, batches.order)

    def _note(self, **values: Any) -> None:
        """Add a row to the history, and tell the tracker and, of an evaluation, the user."""
        row = self.outcome.note(**values)
        if "evaluation" in row:
            evaluation, metric = row["evaluation"], self.task.primary_metric
            self.log({f"evaluation/{key}": value for key, value in evaluation.items()}, row["step"])
            score, on = f"{metric} {evaluation[metric]:.4f}", self.config.dataset.evaluate_on
            self.say(f"  epoch {row['epoch']:g}: {score}, loss {evaluation['loss']:.4f} on {on}")
        else:
            self.log({key: value for key, value in row.items() if key != "step"}, row["step"])

    # --- checkpoints and results -------------------------------------------------------------------------------------

    def _keep(self, step: int) -> None:
        """Write a checkpoint where one is due, and stop where a signal asked for it.

        Raises:
            Interrupted: with the checkpoint written.
        """
        stop = self._asked_to_stop()
        if stop:
            self.losses.read()  # as before any other checkpoint
        if stop or self._checkpoint_is_due(step):
            self._save()
        if stop:
            raise Interrupted(f"stopped after step {step} of {self.steps}; the same command goes on from there.")

    def _checkpoint_is_due(self, step: int) -> bool:
        return step % self.config.trainer.checkpoint_every == 0

    def _asked_to_stop(self) -> bool:
        """Whether a signal reached any of the processes: they stop after the same step."""
        if self.order.processes == 1:
            return self.stop.requested
        requested = torch.tensor(float(self.stop.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(requested, "sum").item())

    def _save(self) -> None:
        if not is_main():
            return
        self.claim.confirm()
        scaler, progress = self.accelerator.scaler, self.outcome.progress
        progress.scaler = scaler.state_dict() if scaler is not None else None
        save_checkpoint(self.run.folder.checkpoint, self.method, self.optimizer.optimizer, progress)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            RecordError: it is not one of this run.
        """
        if not main_decides(self.run.folder.checkpoint.exists):
            return
        progress = load_checkpoint(self.run.folder.checkpoint, self.method, self.optimizer.optimizer, self.steps)
        if progress.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        if not is_main():  # the checkpoint holds the main process's random numbers
            torch.manual_seed(process_seed(self.config.seed, self.order.process, progress.step))
        progress.resumed_from_steps.append(progress.step)
        self.outcome.progress = progress
        self.say(f"  resumed from step {progress.step} of {self.steps}")

    def happened(self) -> dict[str, Any]:
        """The `happened` block of the record."""
        return self.outcome.happened()

    def save_results(self) -> None:
        """The trained adapter in PEFT's format (else the trained parameters), and each example's prediction.

        The examples' losses are kept for the reported split alone: a search has enough of their mean.
        """
        folder, module = self.run.folder, self.method.module
        with storing(folder.path):
            if isinstance(module, PeftModel):
                module.save_pretrained(str(folder.adapter))
            else:
                trained = {name: p.detach().contiguous() for name, p in self.method.trained_parameters()}
                save_file(trained, folder.trained)
        self.outcome.save_predictions(folder, losses=self.config.dataset.evaluate_on == "test")
