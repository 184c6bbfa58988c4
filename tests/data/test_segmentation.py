"""Segmentation: loss and score by NumPy and scikit-learn, and files in the layout of TransUNet's preparation."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import f1_score
from torch import nn

from surm.data import check_data, load_task
from surm.data.base import Split
from surm.data.segmentation import Masks, Slice, by_position, slice_losses
from surm.shared.errors import DataError
from tests.data.hub_layout import write_tiny

ORGANS = ("one", "two", "three")


class Answering(nn.Module):
    """Gives the answers that it was made with, as logits."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.logits = 9.0 * nn.functional.one_hot(answers, len(ORGANS) + 1).permute(0, 3, 1, 2)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(pred_masks=self.logits[pixel_values.long()][:, None])


def test_the_loss_of_a_slice_is_cross_entropy_and_dice_of_its_classes() -> None:
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(size=(2, 4, 6, 5)), rng.integers(0, 3, (2, 6, 5))  # class 3 is in no slice
    p, at = softmax(logits, axis=1), np.moveaxis(np.eye(4)[masks], -1, 1)
    entropy = -np.log((p * at).sum(1)).mean((1, 2))
    dice = (2 * (p * at).sum((2, 3)) + 1) / ((p**2).sum((2, 3)) + at.sum((2, 3)) + 1)
    found = slice_losses(torch.tensor(logits), torch.tensor(masks, dtype=torch.uint8))
    np.testing.assert_allclose(found, 0.2 * entropy + 0.8 * (1 - dice.mean(1)), rtol=1e-12)


def test_a_mask_is_read_in_the_middle_of_what_a_logit_covers() -> None:
    """As Pillow reads it for a smaller picture; logits of those classes then have almost no loss."""
    rng = np.random.default_rng(2)
    masks = rng.integers(0, 4, (3, 32, 24), dtype=np.uint8)
    small = [np.asarray(Image.fromarray(mask).resize((6, 8), Image.Resampling.NEAREST)) for mask in masks]
    logits = 99 * np.moveaxis(np.eye(4)[np.stack(small)], -1, 1)
    np.testing.assert_allclose(slice_losses(torch.tensor(logits), torch.tensor(masks)), 0, atol=1e-12)


def test_a_volume_scores_the_mean_dice_of_the_organs_that_it_has() -> None:
    rng = np.random.default_rng(1)
    volumes, masks = np.array([5, 2, 5, 2, 5, 2]), rng.integers(0, 4, (6, 8, 8))
    masks[volumes == 2] %= 3  # without the third organ
    answers = np.where(rng.random(masks.shape) < 0.3, rng.integers(0, 4, masks.shape), masks)
    module, objective = Answering(torch.tensor(answers)), Masks(ORGANS)
    parts = [
        objective.answer(
            module,
            {
                "pixel_values": torch.tensor(places),
                "masks": torch.tensor(masks[places], dtype=torch.uint8),
                "labels": torch.tensor(volumes[places]),
            },
        )
        for places in ([0, 1, 2], [3, 4, 5])  # batches cut through volumes
    ]
    score = objective.score(tuple(torch.cat(part) for part in zip(*parts, strict=True)))
    dice = {
        volume: [f1_score((masks[of] == k).ravel(), (answers[of] == k).ravel()) for k in range(1, last)]
        for volume, last in ((2, 3), (5, 4))
        for of in [volumes == volume]
    }
    assert score.labels == [2, 3]
    np.testing.assert_allclose(score.predictions, [sum(dice[2]), sum(dice[5])])
    assert score.metrics["dice"] == pytest.approx((np.mean(dice[2]) + np.mean(dice[5])) / 2)
    assert score.metrics["dice of one"] == pytest.approx((dice[2][0] + dice[5][0]) / 2)
    assert score.metrics["dice of three"] == pytest.approx(dice[5][2])
    assert score.metrics["loss"] == pytest.approx(np.mean(score.losses))


def test_the_baseline_answers_the_usual_class_of_each_place() -> None:
    masks = np.array([[[1, 2]], [[1, 0]], [[0, 2]]], dtype=np.uint8)
    train = Split([Slice(mask, mask) for mask in masks], np.arange(3))
    assert by_position(train, train.subset(np.array([0])), organs=2)["by position"] == 1
    # Organ 1 is found where it is, organ 2 where it is not, and there is no organ 2 to be scored.
    assert by_position(train, train.subset(np.array([1])), organs=2)["by position"] == 1
    assert by_position(train, train.subset(np.array([2])), organs=2)["by position"] == 1
    # Organ 2 is most frequent in training, though no volume that is scored has it.
    masks = np.array([[[2, 0]], [[2, 0]], [[1, 0]]], dtype=np.uint8)
    train = Split([Slice(mask, mask) for mask in masks], np.arange(3))
    assert by_position(train, train.subset(np.array([2])), organs=2)["by position"] == 0


def test_files_in_transunets_layout_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = str(write_tiny("synapse", tmp_path))
    check_data("synapse", path=path)
    task, phantoms = load_task("synapse", path=path), load_task("phantoms")
    for one, other in ((task.train, phantoms.train), (task.evaluation, phantoms.evaluation)):
        assert one.labels.tolist() == other.labels.tolist()
        for mine, theirs in zip(one.inputs, other.inputs, strict=True):
            np.testing.assert_array_equal(mine.image, theirs.image)
            np.testing.assert_array_equal(mine.mask, theirs.mask)
    assert task.num_labels == 9
    assert task.baselines == pytest.approx(phantoms.baselines)
    chosen = load_task("synapse", path=path, evaluate_on="selection")
    assert not set(chosen.train.labels) & set(chosen.evaluation.labels)
    assert len(chosen.train) + len(chosen.evaluation) == len(task.train)


def write_slice(folder: Path, case: str = "case0000", **arrays: np.ndarray) -> None:
    whole = {"image": np.zeros((64, 64)), "label": np.zeros((64, 64))}
    np.savez(folder / "train_npz" / f"{case}_slice000.npz", **{**whole, **arrays})


def write_volume(folder: Path, shape: tuple[int, ...]) -> None:
    with h5py.File(folder / "test_vol_h5" / "case0006.npy.h5", "w") as file:
        file["image"], file["label"] = np.zeros(shape), np.zeros(shape)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: [file.unlink() for file in (f / "test_vol_h5").iterdir()], r"has no test_vol_h5/\*\.h5"),
        (lambda f: write_slice(f, image=np.full((64, 64), 200.0)), r"clip Hounsfield units to -125\.\.275"),
        (lambda f: write_slice(f, image=np.full((64, 64), np.nan)), "values from nan to nan"),
        (lambda f: write_slice(f, label=np.full((64, 64), 9)), "label holds 9: number the 8 organs from 1"),
        (lambda f: write_slice(f, label=np.eye(64) * 8 - 1), "label holds -1: number the 8 organs from 1"),
        (lambda f: write_slice(f, "case0009"), "case0009_slice000.npz: case0009 holds no organ"),
        (lambda f: write_slice(f, image=np.zeros((32, 64)), label=np.zeros((32, 64))), "give all one size"),
        (lambda f: write_slice(f, image=np.zeros((3, 64, 64))), "are not two pictures of one size"),
        (lambda f: (f / "train_npz" / "case0000_slice000.npz").write_bytes(b"PK"), "does not hold the arrays"),
        (lambda f: np.savez(f / "train_npz" / "case0000_slice000.npz", image=np.zeros((64, 64))), "label"),
        (lambda f: (f / "test_vol_h5" / "case0006.npy.h5").write_bytes(b"no volume"), "does not hold the arrays"),
        (lambda f: write_volume(f, (3, 64, 64)), "holds no organ"),
        (lambda f: write_volume(f, (64, 64)), "of no volume"),
        (lambda f: (f / "train_npz" / "slices.npz").write_bytes(b""), "is not named as <case>_slice<number>.npz"),
        (lambda f: (f / "test_vol_h5" / "case0006.npy.h5").rename(f / "test_vol_h5/case0001.npy.h5"), "among the tra"),
    ],
)
def test_wrong_files_are_one_sentence_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], object], words: str
) -> None:
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "cache"))
    folder = write_tiny("synapse", tmp_path)
    harm(folder)
    with pytest.raises(DataError, match=words) as caught:
        check_data("synapse", path=str(folder))
    assert "\n" not in str(caught.value)


def test_without_a_path_it_is_said_where_the_data_are() -> None:
    with pytest.raises(DataError, match=r"TransUNet's preparation.*synapse\.org \(syn3193805"):
        check_data("synapse")
