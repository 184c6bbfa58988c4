"""Images in, a class of each pixel out: cross-entropy and Dice as the loss, Dice of organs in volumes as the score."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, one_hot

from surm.data.base import Answers, Example, Examples, Objective, Split
from surm.data.encode import EncodedDataset, Normalise, resizer
from surm.data.metrics import compute_metrics
from surm.models.backbone import Backbone

DICE_SHARE = 0.8  # of the loss; the rest is cross-entropy, as in SAMed
Pixels = NDArray[np.uint8]


class Slice(NamedTuple):
    """One slice of a volume: grey levels and classes, 0 the background, each (height, width)."""

    image: Pixels
    mask: Pixels


class Masks(Objective):
    """The class of each pixel; a split's labels are the numbers of the slices' volumes.

    Loss of a slice: 0.2 of the cross-entropy of its pixels, in nats, and 0.8 of 1 - soft Dice, the mean over classes,
    at the resolution of the model's masks. Answers are given at that of the true masks.

    Dice of an organ in a volume: 2 |A and B| / (|A| + |B|), over all its slices together. An organ that a volume does
    not have is left out there. The score of a volume is the mean over its organs, and that of a split the mean over
    its volumes: they are what is independent, so an interval over examples is one over volumes.

    Args:
        organs: names of the classes behind the background.
    """

    predicts = "masks"

    def __init__(self, organs: Sequence[str]) -> None:
        self.organs = tuple(organs)
        self.metrics = ("dice", *(f"dice of {organ}" for organ in organs))

    def examples(self, split: Split, backbone: Backbone) -> Examples:
        resize = resizer(backbone)

        def encode(raw: Slice) -> Example:
            pixels = resize(np.repeat(raw.image[..., None], 3, axis=-1)).contiguous()
            return {backbone.input_name: pixels, "masks": torch.from_numpy(raw.mask)}

        assert backbone.mean is not None
        assert backbone.std is not None
        return EncodedDataset(split, encode, {}, Normalise(backbone.input_name, backbone.mean, backbone.std))

    def loss(self, module: nn.Module, batch: Example) -> Tensor:
        logits, masks, _ = _logits(module, batch)
        return slice_losses(logits, masks).mean()

    def answer(self, module: nn.Module, batch: Example) -> tuple[Tensor, ...]:
        logits, masks, volumes = _logits(module, batch)
        answers = interpolate(logits, masks.shape[-2:], mode="bilinear").argmax(1)
        found, true = (_by_organ(of, len(self.organs)) for of in (answers, masks))
        sizes = [pixels.sum(dim=(1, 2)) for pixels in (found & true, found, true)]
        return volumes, *sizes, slice_losses(logits, masks)

    def score(self, answers: tuple[Tensor, ...]) -> Answers:
        volumes, *sizes, losses = answers
        of_volume, place = torch.unique(volumes, return_inverse=True)
        both, found, true = (_sums(part, place, len(of_volume)) for part in sizes)
        dice, present = 2 * both / (found + true).clamp(min=1), true > 0
        organs, total = present.sum(1).double(), (dice * present).sum(1)
        metrics = compute_metrics(("dice",), organs.numpy(), total.numpy())
        for organ, name in enumerate(self.organs):
            if (there := present[:, organ]).any():
                metrics[f"dice of {name}"] = float(dice[there, organ].mean())
        means = _sums(losses, place, len(of_volume)) / place.bincount()
        return Answers(organs.tolist(), total.tolist(), means.tolist(), metrics | {"loss": float(means.mean())})


def _logits(module: nn.Module, batch: Example) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, classes, h, w), true classes (B, height, width), volumes (B,)."""
    inputs = dict(batch)
    masks, volumes = inputs.pop("masks"), inputs.pop("labels")
    output: Any = module(**inputs)
    return output.pred_masks[:, 0].float(), masks, volumes


def slice_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """The loss of each slice, (B,); logits (B, classes, h, w), true classes (B, height, width).

    Soft Dice of a class, with p its probability and t 1 at its pixels: (2 sum p t + 1) / (sum p^2 + sum t + 1).
    """
    # The class in the middle of what a logit covers: "nearest" takes the first one's, which moves every mask.
    true = interpolate(masks[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()
    entropy = cross_entropy(logits, true, reduction="none").mean(dim=(1, 2))
    probability = logits.softmax(1)
    at = one_hot(true, logits.shape[1]).permute(0, 3, 1, 2)
    over = (2, 3)
    dice = (2 * (probability * at).sum(over) + 1) / (probability.square().sum(over) + at.sum(over) + 1)
    return (1 - DICE_SHARE) * entropy + DICE_SHARE * (1 - dice.mean(1))


def _by_organ(classes: Tensor, organs: int) -> Tensor:
    """(B, height, width) -> (B, height, width, organs), whether a pixel is of each organ."""
    return classes[..., None] == torch.arange(1, organs + 1, device=classes.device)


def _sums(values: Tensor, place: Tensor, volumes: int) -> Tensor:
    """Over the slices of each volume."""
    return torch.zeros(volumes, *values.shape[1:], dtype=torch.float64).index_add(0, place, values.double())


def by_position(train: Split, evaluation: Split, *, organs: int) -> dict[str, float]:
    """The Dice of answering, in any slice, at each pixel the class that is most frequent there in training."""
    counts = np.zeros((organs + 1, *train.inputs[0].mask.shape), dtype=np.int64)
    for raw in train.inputs:
        for number in range(organs + 1):
            counts[number] += raw.mask == number
    answer = counts.argmax(0)
    sizes: dict[int, NDArray[np.int64]] = {}
    for raw, volume in zip(evaluation.inputs, evaluation.labels.tolist(), strict=True):
        of = [(answer == organ, raw.mask == organ) for organ in range(1, organs + 1)]
        slices = np.array([[(one & other).sum(), one.sum() + other.sum(), other.sum()] for one, other in of])
        sizes[volume] = sizes.get(volume, 0) + slices
    dice = [np.mean(2 * both[true > 0] / total[true > 0]) for both, total, true in (size.T for size in sizes.values())]
    return {"by position": float(np.mean(dice))}
