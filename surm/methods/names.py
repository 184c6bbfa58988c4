"""What methods are called in tables, figures and claims: plain data, which loads nothing."""

from collections.abc import Callable, Mapping
from typing import Any

_NAMES: dict[str, str] = {
    "circulant": "circulant",
    "skew_circulant": "skew-circulant",
    "toeplitz": "Toeplitz",
    "kronecker": "Kronecker",
    "ldr": "ldr",
    "low_rank": "low rank",
    "block_circulant": "block-circulant",
    "monarch": "Monarch",
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
    "blocks": lambda blocks: f", {blocks} blocks",
    "block_size": lambda size: f", blocks of {size}",
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
