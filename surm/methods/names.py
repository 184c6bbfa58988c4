"""What methods are called in tables and claims, and their marks in figures: plain data, which loads nothing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Style(NamedTuple):
    """What a method is called in tables, and its colour and mark in figures (filled: a structured matrix).

    A mark is matplotlib's: a shape, or lines or a letter between dollars, which look the same filled and not.
    """

    label: str
    color: str
    marker: str
    filled: bool = False


# The Okabe-Ito palette and Tol's wine, safe for colour-blind readers.
BLACK, GREY, WINE, BLUE = "#000000", "#7F7F7F", "#882255", "#0072B2"
VERMILION, GREEN, PINK, SKY, ORANGE = "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"

# No two methods share mark and, where it is a shape, filling, so that colour is never needed.
METHODS: dict[str, Style] = {
    "circulant": Style("circulant", BLUE, "o", filled=True),
    "skew_circulant": Style("skew-circulant", SKY, "v", filled=True),
    "toeplitz": Style("Toeplitz", VERMILION, "s", filled=True),
    "kronecker": Style("Kronecker", GREEN, "^", filled=True),
    "ldr": Style("ldr", PINK, "D", filled=True),
    "low_rank": Style("low rank", ORANGE, "P", filled=True),
    "block_circulant": Style("block-circulant", BLUE, "<", filled=True),
    "monarch": Style("Monarch", GREEN, ">", filled=True),
    "block_low_rank": Style("MELoRA", ORANGE, "$M$", filled=True),
    "lora_mini": Style("LoRA-Mini", ORANGE, "+", filled=True),
    "lora_xs": Style("LoRA-XS", VERMILION, "x", filled=True),
    "diagonal": Style("diagonal", GREY, "d", filled=True),
    "aurora": Style("Aurora", PINK, "*", filled=True),
    "lorta": Style("LoRTA", ORANGE, "h", filled=True),
    "hadamard": Style("Hadamard adapter", GREEN, "$H$", filled=True),
    "circulant+skew_circulant": Style("circulant + skew-circulant", SKY, "X", filled=True),
    "lora": Style("LoRA", BLACK, "o"),
    "full": Style("full fine-tuning", BLACK, "D"),
    "lora_fa": Style("LoRA-FA", BLACK, "d"),
    "linear_probe": Style("linear probe", GREY, "s"),
    "bitfit": Style("BitFit", GREY, "^"),
    "attention_tuning": Style("attention only", GREY, "X"),
    "layernorm_tuning": Style("LayerNorm tuning", GREY, "P"),
    "bottleneck": Style("bottleneck", WINE, "p"),
    "compacter": Style("Compacter", WINE, "1"),
    "adapter_drop": Style("AdapterDrop", WINE, "2"),
    "prefix_tuning": Style("prefix tuning", BLACK, "3"),
    "peft_adalora": Style("AdaLoRA", WINE, "<"),
    "peft_dora": Style("DoRA", WINE, ">"),
    "peft_vera": Style("VeRA", WINE, "*"),
    "peft_c3a": Style("C3A", WINE, "h"),
    "peft_lokr": Style("LoKr", WINE, "8"),
    "peft_boft": Style("BOFT", WINE, "H"),
    "gated_low_rank": Style("gated low rank", ORANGE, "p", filled=True),
    "gated_chain": Style("gated chain", ORANGE, "4", filled=True),
    "adalora": Style("AdaLoRA (ours)", VERMILION, "$A$", filled=True),
    "dynamic_dora": Style("dynamic DoRA", VERMILION, "$D$", filled=True),
    "lora2": Style("LoRA²", VERMILION, "$2$", filled=True),
}


def style_of(structure: str) -> Style:
    """The row of a structure or baseline; one without a row is named by its parts and has a grey mark."""
    if structure in METHODS:
        return METHODS[structure]
    parts = structure.split("+")
    label = " + ".join(METHODS[part].label if part in METHODS else _peft_name(part) for part in parts)
    return Style(label, GREY, "v")


SILENT_ARGUMENTS: frozenset[str] = frozenset(
    {"target_modules", "modules_to_save", "task_type", "total_step", "use_dora"}
)
"""Arguments of a PEFT method that its name leaves out: what is tuned, which the placement says, and what follows."""


# What an option adds to the name; nothing where the value is the usual one.
_PHRASES: dict[str, Callable[[Any], str]] = {
    "of": lambda adapter: "" if adapter == "bottleneck" else f" of {style_of(adapter).label}",
    "rank": lambda rank: f" r={rank}",
    "target_rank": lambda rank: f" to {rank:g}",
    "outer_rank": lambda rank: "" if rank == 1 else f", outer r={rank}",
    "std": lambda std: "" if std is None else f", std {std:g}",
    "penalty": lambda weight: f", penalty {weight:g}",
    "squared_penalty": lambda squared: ", squared penalty" if squared else "",
    "cross_penalty": lambda cross: "" if cross else ", no cross penalty",
    "prune_start": lambda share: f", pruned from {share:g}",
    "prune_end": lambda share: f", pruned to {share:g}",
    "prune_every": lambda share: f", pruned every {share:g}",
    "smoothing": lambda weight: f", smoothing {weight:g}",
    "dropped_layers": lambda number: f", without the lowest {number}",
    "size": lambda size: f", size {size}",
    "tokens": lambda number: f", {number} tokens",
    "projection": lambda projected: ", projected" if projected else "",
    "parametrization": lambda kind: "" if kind == "product" else f", {kind}",
    "symmetric": lambda symmetric: "" if symmetric else ", general",
    "factors": lambda factors: "" if factors == 2 else ", one factor",
    "blocks": lambda blocks: f", {blocks} blocks",
    "block_size": lambda size: f", blocks of {size}",
    "outer": lambda outer: ", a={}, b={}".format(*outer),
    "outer_seed": lambda seed: "" if seed == 0 else f", outer seed {seed}",
    "heads": lambda heads: "" if heads == "attention" else f", heads of {heads}s",
    "num_heads": lambda heads: "" if heads is None else f", {heads} heads",
    "core": lambda core: ", dense core" if core else "",
    "gate": lambda gate: ", gate" if gate else "",
    "position": lambda position: "" if position == "before" else ", after the projection",
    "shift": lambda shift: "" if shift else ", no shift",
    "norms": lambda norms: {"one": "", "none": ", no norms", "both": ", both norms"}[norms],
    "layers": lambda layers: "" if layers is None else f", {layers} upper blocks",
    "head_first": lambda share: "" if share == 0 else f", head first {100 * share:g} %",
    "terms": lambda terms: "" if terms == 1 else f", {terms} terms",
    "alpha": lambda alpha: f", alpha {alpha:g}",
    "dropout": lambda dropout: "" if dropout == 0 else f", dropout {dropout:g}",
    "init_weights": lambda scheme: ", authors' start" if scheme == "authors" else "",
    "arguments": lambda arguments: "".join(
        f", {name}={value}" for name, value in sorted(arguments.items()) if name not in SILENT_ARGUMENTS
    ),
}


_PRUNED = {"penalty": 0.1, "prune_start": 0.15, "prune_end": 0.5, "prune_every": 0.002, "smoothing": 0.85, "std": 0.02}
_USUAL: dict[str, dict[str, Any]] = {
    "adalora": _PRUNED | {"alpha": 16},
    "dynamic_dora": _PRUNED | {"alpha": 8, "dropout": 0.1, "prune_every": 0.0175, "smoothing": 0.9},
    "lora2": _PRUNED | {"alpha": 16},
}  # values of one method that its name leaves out

_ALL_LINEAR = ["q", "k", "v", "o", "mlp"]


def _peft_name(structure: str) -> str:
    """A method of PEFT that has no name of its own here, in capitals: `peft_boft` is BOFT."""
    return structure.removeprefix("peft_").upper() if structure.startswith("peft_") else structure


def label(asked: Mapping[str, Any]) -> str:
    """Name of the method that was asked for, as tables and claims write it: `LoRA r=1`, `ldr, 4 terms`, `BitFit`.

    Options at their usual value are silent, of LoRA an alpha equal to its rank, and so is the shape of Kronecker
    factors, which a record holds whether it was asked for or chosen; `ldr` always says its number of terms. A placement
    other than q, k, v in weight form is added: `circulant (q, v)`, `circulant (all linear)`, `circulant, Houlsby
    adapter, no bias`. A method of PEFT adds its arguments, `AdaLoRA, init_r=2`, except `SILENT_ARGUMENTS`.
    """
    structure = dict(asked["structure"])
    name = structure.pop("name")
    text = style_of(name).label
    usual = {"alpha": 1} | _USUAL.get(name, {})
    if name in ("lora", "lora_fa"):
        usual = {"alpha": structure.get("rank")}  # a factor alpha / rank of 1
    structure = {option: value for option, value in structure.items() if option not in usual or value != usual[option]}
    if name == "ldr" and structure.get("terms", 1) == 1:
        text += ", 1 term"
    text += "".join(phrase(structure[option]) for option, phrase in _PHRASES.items() if option in structure)
    return text + _placement(asked.get("placement") or {})


def data_name(dataset: Mapping[str, Any]) -> str:
    """Name of the data that were asked for, as tables write it: `glue/cola`; `uuid, 100 pairs`."""
    pairs = dataset.get("pairs")
    return str(dataset["name"]) + (f", {pairs:,} pairs" if pairs else "")


def _placement(placement: Mapping[str, Any]) -> str:
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
