"""Allocators: while an adapter trains, they switch off components of its gated structures, the least important first.

All gates of a model share one budget, so that layers end with different numbers of components. After the last step
`SurmModel.compact` takes out what is switched off.

```python
model = get_peft_model(base, SurmConfig(structure="gated_low_rank", structure_options={"rank": 2, "std": 0.02}))
allocator = AdaLora(model, steps=1000)
for step in range(1000):
    loss = task_loss(model, batch) + allocator.penalty()
    loss.backward()
    optimizer.step()
    allocator.after_step(step)
    optimizer.zero_grad()
model.compact()
```

Letters: N components of all K structures, T steps, b(t) the components that may stay after step t.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surm.structures.gated import Gated, GatedChain


class Allocator(ABC):
    """Scores each component, averages the scores over the steps, and keeps the best b(t) of a whole model.

    The budget falls from N at the step `start` T to `target` K at the step `end` T, in pruning steps `every` T apart;
    in these, the gates of the components with the lowest scores become zero. Until the last one they may grow again;
    from then on the choice is final. As in the authors' codes all components whose score is at most a threshold are
    switched off, so that equal scores go together.

    Args:
        model: with gated structures that are trained.
        steps: T, of the whole training.
        target: components of a structure that stay on average; what all start with prunes nothing.
        start: share of the training before the first pruning.
        end: share after which the choice is final.
        every: share between two prunings; one step at least.
        smoothing: weight of the past in the averages.
        weight: of the penalty.

    Raises:
        ValueError: one sentence; no structure is gated, the target is more than the start, or too few steps.
    """

    first_step: ClassVar[int]
    """How the authors' code counts the first step."""

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        target: float = 1.0,
        start: float = 0.15,
        end: float = 0.5,
        every: float = 0.002,
        smoothing: float = 0.85,
        weight: float = 0.1,
    ) -> None:
        self.structures = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, Gated) and module.gates().requires_grad
        }
        if not self.structures:
            raise ValueError("no gated structure is trained: give structure='gated_low_rank' or 'gated_chain'.")
        self.total = sum(len(structure.gates()) for structure in self.structures.values())
        self.final = max(1, round(target * len(self.structures)))
        if self.final > self.total:
            raise ValueError(
                f"target={target} is more than the {self.total / len(self.structures):g} components that a structure "
                "starts with: give less, or a higher rank."
            )
        self.start, self.end = (int(share * steps + 1e-9) for share in (start, end))  # 0.15 * 1000 is 149.99...
        self.every = max(1, round(every * steps))
        if self.end <= self.start:
            raise ValueError(
                f"{steps} steps leave none between {start:g} and {end:g} of them, in which components are chosen: "
                "train longer."
            )
        self.smoothing, self.weight = smoothing, weight
        self.averages = {key: torch.zeros_like(of, dtype=_wide(of)) for key, of in self._averaged().items()}
        self.kept: dict[str, Tensor] = {}  # by structure, once the choice is final

    # --- a training step ---------------------------------------------------------------------------------------------

    @abstractmethod
    def penalty(self) -> Tensor:
        """What is added to the loss of each forward pass."""

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number `step`, from 0, with its gradients still there."""
        t = step + self.first_step
        if self.kept:
            self._switch_off(self.kept)
            return
        if t < self.end or self._scores_last:
            self._average()
        kept = self._choose(t) if self.prunes(t) else {}
        self._switch_off(kept)
        if t >= self.end:
            self.kept = kept

    _scores_last: ClassVar[bool]  # whether the averages take the gradients or gates of the step `end`, too

    @abstractmethod
    def prunes(self, t: int) -> bool:
        """Whether components are chosen after step t, as the authors count it."""

    @abstractmethod
    def budget(self, t: int) -> int:
        """b(t), the components that stay where `prunes(t)`."""

    # --- scores ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _averaged(self) -> dict[str, Tensor]:
        """By name, a tensor of the shape of each average."""

    @abstractmethod
    def _average(self) -> None:
        """Take this step into the averages."""

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """By structure, the score of each component (rank,), from the averages."""

    def ranks(self) -> dict[str, int]:
        """By structure, how many components are not switched off."""
        return {name: int(structure.gates().count_nonzero()) for name, structure in self.structures.items()}

    def _choose(self, t: int) -> dict[str, Tensor]:
        """By structure, which components stay (rank,)."""
        scores = self.scores()
        removed = self.total - self.budget(t)
        if removed == 0:
            return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
        every = torch.cat([score.cpu() for score in scores.values()])
        threshold = every.kthvalue(removed).values
        return {name: score > threshold.to(score.device) for name, score in scores.items()}

    def _switch_off(self, kept: Mapping[str, Tensor]) -> None:
        for name, stays in kept.items():
            gates = self.structures[name].gates()
            gates.masked_fill_(~stays.to(gates.device), 0.0)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, and the choice once it is final; the rest follows from the step."""
        return self.averages | {f"kept/{name}": stays for name, stays in self.kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: it is of other structures or not finite, in a few words; nothing is then changed.
        """
        expected = dict(self.averages)
        kept = {key.removeprefix("kept/"): value for key, value in state.items() if key.startswith("kept/")}
        if kept:
            expected |= {
                f"kept/{name}": torch.ones_like(structure.gates(), dtype=torch.bool)
                for name, structure in self.structures.items()
            }
        if state.keys() != expected.keys():
            raise ValueError("it holds averages of other structures than this run trains")
        for key, value in state.items():
            like = expected[key]
            if value.shape != like.shape or value.dtype != like.dtype or not value.isfinite().all():
                raise ValueError(f"the average {key} does not fit its structure")
        self.averages = {key: state[key].to(like.device) for key, like in self.averages.items()}
        self.kept = kept


class DynamicRank(Allocator):
    """LoRA of dynamic rank (DoRA, arXiv 2405.17357): what a component has of the norm of its update.

    s_i = |c_i| |L_i| |R_i| / |W|_F, without gradients; s <- smoothing s + (1 - smoothing) s_i from 0. With p the share
    of the way from `start` to `end`, N - b = (N - target K) p^3, rounded down, and at least 1. The penalty is weight
    times the mean variance of the entries of a component's vectors, which pulls them towards constant ones; none once
    the choice is final. O(rank (m + n)) a structure.
    """

    first_step = 1
    _scores_last = True

    def penalty(self) -> Tensor:
        """weight [sum_i Var(L_i) + sum_i Var(R_i)] / (2 N), unbiased; of one entry it is 0."""
        spreads = [
            rows.var(dim=1).sum()
            for structure in self.structures.values()
            for name in structure.components
            if (rows := structure.component_rows(name, getattr(structure, name))).shape[1] > 1
        ]
        if self.kept or not spreads:
            return torch.zeros(())
        return self.weight * torch.stack(spreads).sum() / (2 * self.total)

    def prunes(self, t: int) -> bool:
        since = t - self.start
        return t >= self.end or (since >= 0 and since % self.every == 0)

    def budget(self, t: int) -> int:
        if self.final == self.total:
            return self.total
        way = min(1.0, (t - self.start) / (self.end - self.start))
        return self.total - max(1, int((self.total - self.final) * way**3))

    def _averaged(self) -> dict[str, Tensor]:
        return {f"share/{name}": structure.gates().detach() for name, structure in self.structures.items()}

    def _average(self) -> None:
        for name, structure in self.structures.items():
            key, gates = f"share/{name}", structure.gates()
            left, right = structure.sides(_wide(gates))
            norms = gates.abs() * left.norm(dim=0) * right.norm(dim=1)
            inner = (left.mT @ left) * (right @ right.mT)  # of the components with each other
            whole = (gates @ inner.to(gates.dtype) @ gates).clamp_min(0).sqrt()
            share = norms / (whole + 1e-8)
            self.averages[key] = self.averages[key].to(share).lerp(share, 1 - self.smoothing)

    def scores(self) -> dict[str, Tensor]:
        return {name: self.averages[f"share/{name}"] for name in self.structures}


class AdaLora(Allocator):
    """AdaLoRA (arXiv 2303.10512): the sensitivity of the loss to a component's entries, times its uncertainty.

    Of an entry w, I = |w dL/dw| after the step; I' <- smoothing I' + (1 - smoothing) I and U <- smoothing U +
    (1 - smoothing) |I - I'| with the new I', both from 0; s(w) = I' U. A component's score is s of its gate plus, of
    each of its vectors, the mean of s. With p the share of the way from `start` to `end`,
    b = target K + (N - target K) (1 - p)^3, rounded down. The penalty keeps the vectors orthonormal.

    Args:
        squared: the penalty as the paper's text has it, the sum of the squared norms, in place of the mean of the
            norms, as in the authors' code and in PEFT.
    """

    first_step = 0
    _scores_last = False

    def __init__(self, model: nn.Module, steps: int, *, squared: bool = False, **settings: Any) -> None:
        super().__init__(model, steps, **settings)
        self.squared = squared

    def penalty(self) -> Tensor:
        """weight times the mean of |F F^T - I|_F over all factors F (rank, ...); squared: the sum of the squares."""
        gaps = [
            _gap(structure.component_rows(name, getattr(structure, name)))
            for structure in self.structures.values()
            for name in structure.components
        ]
        norms = torch.stack([torch.linalg.norm(gap) for gap in gaps])
        if self.squared:
            return self.weight * torch.stack([gap.square().sum() for gap in gaps]).sum()
        return self.weight * norms.mean()

    def prunes(self, t: int) -> bool:
        return t >= self.end or (t > self.start and t % self.every == 0)

    def budget(self, t: int) -> int:
        if t <= self.start:
            return self.total
        if t >= self.end:
            return self.final
        left = 1 - (t - self.start) / (self.end - self.start)
        return int(self.final + (self.total - self.final) * left**3)

    def _scored(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}/{tensor}": getattr(structure, tensor)
            for name, structure in self.structures.items()
            for tensor in ("c", *structure.components)
        }

    def _averaged(self) -> dict[str, Tensor]:
        scored = self._scored()
        return {f"{which}/{key}": of.detach() for which in ("importance", "uncertainty") for key, of in scored.items()}

    def _average(self) -> None:
        past, now = self.smoothing, 1 - self.smoothing
        for key, parameter in self._scored().items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            importance = (parameter * gradient).abs().to(_wide(parameter))
            mean = past * self.averages[f"importance/{key}"].to(importance) + now * importance
            spread = past * self.averages[f"uncertainty/{key}"].to(importance) + now * (importance - mean).abs()
            self.averages[f"importance/{key}"], self.averages[f"uncertainty/{key}"] = mean, spread

    def scores(self) -> dict[str, Tensor]:
        found = {}
        for name, structure in self.structures.items():
            entries = {
                tensor: self.averages[f"importance/{name}/{tensor}"] * self.averages[f"uncertainty/{name}/{tensor}"]
                for tensor in ("c", *structure.components)
            }
            means = [structure.component_rows(of, entries[of]).mean(dim=1) for of in structure.components]
            found[name] = entries["c"] + torch.stack(means).sum(dim=0)
        return found


class LoraSquared(AdaLora):
    """LoRA^2 (arXiv 2408.06854): AdaLoRA's scores and budget on the inner pair of U P diag(c) Q V.

    Args:
        cross: whether the penalty keeps the planes of the two pairs orthogonal to each other, as the paper means it and
            its code does not.
    """

    def __init__(self, model: nn.Module, steps: int, *, cross: bool = True, **settings: Any) -> None:
        super().__init__(model, steps, **settings)
        self.cross = cross
        if not all(isinstance(structure, GatedChain) for structure in self.structures.values()):
            raise ValueError("the outer pair is missing: give structure='gated_chain'.")

    def penalty(self) -> Tensor:
        """weight times the mean of five norms of each structure: |F F^T - I|_F for V, Q^T, P, U^T, and |U P Q V|_F.

        One mean of all, as the authors' code divides by the number of its terms, of which |U P Q V|_F is to be one.
        """
        norms = []
        for structure in self.structures.values():
            _, U, P, Q, V = structure.factors()
            norms += [torch.linalg.norm(_gap(factor)) for factor in (V, Q.mT, P, U.mT)]
            if self.cross:
                # |U M V|_F by k x k matrices, M = P Q: the m x n one is never made. Its square root has no slope at 0.
                M = P @ Q
                square = ((U.mT @ U @ M) * (M @ (V @ V.mT))).sum()
                norms.append(square.clamp_min(1e-24).sqrt())
        return self.weight * torch.stack(norms).mean()


def _gap(rows: Tensor) -> Tensor:
    """F F^T - I of F (rank, entries)."""
    return rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
