"""Record files as typed rows, and the name of the method that a record's request stands for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from surm.report.statistics import Evaluation


@dataclass(frozen=True)
class Record:
    """One run: what it was asked, what happened and where; predictions are read when first used.

    `path` is the record's file; its predictions lie beside it (`predictions.json`, or
    `<signature>.predictions.json` among published records).
    """

    path: Path
    signature: str
    status: str
    asked: dict[str, Any]
    happened: dict[str, Any]
    where: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def is_study(self) -> bool:
        """A part of a study without a backbone, not a run of a model."""
        return "study" in self.asked

    @property
    def seed(self) -> int:
        return int(self.asked["seed"])

    @property
    def metric(self) -> str:
        """Name of the metric that the tables report."""
        return str(self.happened["primary_metric"])

    @property
    def score(self) -> float:
        """The primary metric at the end of training, in percent."""
        return 100 * float(self.happened["metrics"][self.metric])

    @property
    def best_epoch_score(self) -> float:
        """The primary metric at the epoch that was best on the reported split, in percent: an optimistic number."""
        return 100 * float(self.happened["best_epoch_metrics"][self.metric])

    @property
    def request(self) -> str:
        """What was asked apart from the seed, as canonical text: equal for the seeds of one method."""
        return json.dumps({key: value for key, value in self.asked.items() if key != "seed"}, sort_keys=True)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """Labels and predictions of the evaluation examples; None when the run kept none."""
        beside = "predictions.json" if self.path.name == "record.json" else f"{self.signature}.predictions.json"
        file = self.path.with_name(beside)
        if not file.exists():
            return None
        stored = json.loads(file.read_text())
        return Evaluation(self.metric, np.asarray(stored["labels"]), np.asarray(stored["predictions"]))


def read_records(folder: Path) -> dict[str, Record]:
    """All records below `folder` by signature: `<signature>/record.json` of runs or `<signature>.json` as published."""
    files = sorted(folder.glob("*/record.json")) + sorted(folder.glob("*.json"))
    records = [_read(file) for file in files if not file.name.endswith(".predictions.json")]
    return {record.signature: record for record in records}


def _read(path: Path) -> Record:
    stored = json.loads(path.read_text())
    return Record(path, *(stored[key] for key in ("signature", "status", "asked", "happened", "where")))


def unrun(signature: str, asked: Mapping[str, Any]) -> Record:
    """A planned run that has no record: what it would be asked, and nothing else."""
    return Record(Path(), signature, "not run", dict(asked), {}, {})


# --- names of methods -------------------------------------------------------------------------------------------------

_NAMES: dict[str, str] = {
    "circulant": "circulant",
    "skew_circulant": "skew-circulant",
    "toeplitz": "Toeplitz",
    "kronecker": "Kronecker",
    "ldr": "ldr",
    "low_rank": "low rank",
    "lora": "LoRA",
    "bitfit": "BitFit",
    "linear_probe": "linear probe",
    "full": "full fine-tuning",
    "bottleneck": "bottleneck",
    "lora_fa": "LoRA-FA",
    "attention_tuning": "attention only",
    "layernorm_tuning": "LayerNorm tuning",
    "peft_adalora": "AdaLoRA",
    "peft_dora": "DoRA",
    "peft_vera": "VeRA",
    "peft_lokr": "LoKr",
}

SILENT_ARGUMENTS: frozenset[str] = frozenset(
    {"target_modules", "modules_to_save", "task_type", "total_step", "use_dora"}
)
"""Arguments of a PEFT method that its name leaves out: what is tuned, which the placement says, and what follows."""

# What an option adds to the name; nothing where the value is the usual one.
_PHRASES: dict[str, Callable[[Any], str]] = {
    "size": lambda size: f", size {size}",
    "rank": lambda rank: f" r={rank}",
    "parametrization": lambda kind: "" if kind == "product" else f", {kind}",
    "symmetric": lambda symmetric: "" if symmetric else ", general",
    "factors": lambda factors: "" if factors == 2 else ", one factor",
    "terms": lambda terms: "" if terms == 1 else f", {terms} terms",
    "alpha": lambda alpha: "" if alpha == 1 else f", alpha {alpha:g}",
    "dropout": lambda dropout: "" if dropout == 0 else f", dropout {dropout:g}",
    "init_weights": lambda scheme: ", authors' start" if scheme == "authors" else "",
    "arguments": lambda arguments: "".join(
        f", {name}={value}" for name, value in sorted(arguments.items()) if name not in SILENT_ARGUMENTS
    ),
}

_ALL_LINEAR = ["q", "k", "v", "o", "mlp"]


def family_name(structure: str) -> str:
    """A structure's or baseline's name as tables write it."""
    return " + ".join(_NAMES.get(part, _peft_name(part)) for part in structure.split("+"))


def _peft_name(structure: str) -> str:
    """A method of PEFT that has no name of its own here, in capitals: `peft_boft` is BOFT."""
    return structure.removeprefix("peft_").upper() if structure.startswith("peft_") else structure


def label(asked: Mapping[str, Any]) -> str:
    """Name of the method that was asked for, as tables and claims write it: `LoRA r=1`, `ldr, 4 terms`, `BitFit`.

    Options at their usual value are silent, and so is the shape of Kronecker factors, which a record holds whether it
    was asked for or chosen; `ldr` always says its number of terms. A placement other than q, k, v in weight form is
    added: `circulant (q, v)`, `circulant (all linear)`, `circulant, Houlsby adapter, no bias`. A method of PEFT adds
    its arguments, `AdaLoRA, init_r=2`, except `SILENT_ARGUMENTS`.
    """
    structure = dict(asked["structure"])
    name = structure.pop("name")
    text = family_name(name)
    if name == "ldr" and structure.get("terms", 1) == 1:
        text += ", 1 term"
    text += "".join(phrase(structure[option]) for option, phrase in _PHRASES.items() if option in structure)
    return text + _place(asked.get("placement") or {})


def _place(placement: Mapping[str, Any]) -> str:
    if placement.get("form", "weight") == "adapter":
        return _adapter(placement)
    parts = list(placement.get("parts", ["q", "k", "v"]))
    if parts == ["q", "k", "v"]:
        return ""
    return " (all linear)" if parts == _ALL_LINEAR else f" ({', '.join(parts)})"


def _adapter(placement: Mapping[str, Any]) -> str:
    words = [f"{str(placement['sites']).capitalize()} adapter"]
    words += [] if placement["adapter_bias"] else ["no bias"]
    words += [] if placement["activation"] == "gelu" else [placement["activation"]]
    words += [] if placement["position"] == "after" else [f"{placement['position']} dropout"]
    return f", {', '.join(words)}"
