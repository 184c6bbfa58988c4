"""The identity of a run: a short hash of everything that could move its numbers, and of nothing else.

In it: model and data with their revisions, the method and its settings, placement, optimiser, precision, seed, and the
`SCIENCE_VERSION` integers that are raised by hand when a change moves numbers. Not in it: commit, device, paths,
threads, tracking, launcher, and the experiment a run was started for.
"""

from typing import Any

from surm import data, models, structures
from surm.config.schema import RunConfig
from surm.methods.registry import method_class
from surm.methods.schema import PlacementConfig
from surm.tuners.targets import PARTS

TRAIN_SCIENCE_VERSION = 1

_TRAINER_SCIENCE = ("epochs", "batch_size", "gradient_accumulation", "precision", "max_steps")


def asked(config: RunConfig) -> dict[str, Any]:
    """The resolved scientific configuration of `Run.config`, as it stands in a run's record.

    Settings that the method ignores are left out, so that two commands for the same science have one signature.
    """
    model, dataset = config.model, config.dataset
    width = models.model_width(model.name, **model.origin())
    method = method_class(config.structure.name)
    question: dict[str, Any] = {
        "model": {
            "name": model.name,
            "source": model.source,
            "revision": models.model_revision(model.name, **model.origin()),
            "image_size": model.image_size or models.model_image_size(model.name, source=model.source),
            "dropout": model.dropout,
        },
        "dataset": {
            "name": dataset.name,
            "revision": data.data_revision(dataset.name, **dataset.origin()),
            "fraction": dataset.fraction if dataset.fraction < 1 else None,
            "columns": dataset.origin()["columns"],
            **data.data_options(dataset.name, dataset.origin()["options"]),
            "evaluate_on": dataset.evaluate_on,
        },
        "structure": method.resolve(config.structure, config.placement.form, width),
        "placement": _placement(config.placement),
        "optim": dict(vars(config.optim)),
        "trainer": {name: getattr(config.trainer, name) for name in _TRAINER_SCIENCE},
        "seed": config.seed,
        "science_version": {
            "data": data.SCIENCE_VERSION,
            "structures": structures.SCIENCE_VERSION,
            "train": TRAIN_SCIENCE_VERSION,
        },
    }
    if config.optim.head_lr is None:  # records from before this setting do not have it
        del question["optim"]["head_lr"]
    if not method.uses_placement:
        del question["placement"]
        del question["optim"]["decay_structure"]
    for axis in ("model", "dataset"):
        question[axis] = {key: value for key, value in question[axis].items() if value is not None}
    return question


def _placement(placement: PlacementConfig) -> dict[str, Any]:
    """The settings of the chosen form."""
    if placement.form == "weight":
        return {"form": "weight", "parts": sorted(placement.parts, key=PARTS.index)}
    return {key: value for key, value in vars(placement).items() if key != "parts"}
