"""PEFT's test rows for LoRA, translated to SURM: each row whose options have a counterpart, for each structure."""

from collections.abc import Iterator
from dataclasses import field, fields, make_dataclass
from itertools import product
from typing import Any, NamedTuple

import pytest
from peft import LoraConfig

from surm.structures import STRUCTURES, structure_class
from surm.tuners import SurmConfig
from tests.peft.models import local

FORMS = ("weight", "adapter")
RENAMED = {"lora_dropout": "dropout", "init_lora_weights": "init_weights"}
# Layers that the forms do not take, by what ends their names in PEFT's tests.
LEFT_OUT = {
    "weight": ("mha",),
    "adapter": ("mha", "conv3d", "conv2d", "conv1d", "emb", "embed_tokens"),
}
# PEFT's tests want outputs that differ by 1e-3, and LoRA's random start is 4 to 24 times larger than SURM's.
RANDOM_START = 4.0
# The sites of adapters are known for fewer models than PEFT's tests use; some of these are in each of them.
ADAPTED = ["q_proj", "v_proj", "query", "value", "q", "v", "query_proj", "value_proj", "in_proj", "ln_2"]


class Variant(NamedTuple):
    """A structure in a form."""

    structure: str
    form: str


def variants(structures: list[str], forms: list[str]) -> list[Variant]:
    """All asked for, of all structures and forms where none are named, without adapters that need a weight."""
    pairs = product(structures or STRUCTURES, forms or FORMS)
    return [Variant(*pair) for pair in pairs if pair[1] == "weight" or not structure_class(pair[0]).needs_weight]


def adds_up(variant: Variant) -> bool:
    """Whether several adapters have a weighted sum: each of them is a matrix that its parameters alone make."""
    kind = structure_class(variant.structure)
    return variant.form == "weight" and not (kind.needs_weight or kind.needs_place or kind.shares)


def preset(variant: Variant) -> type[SurmConfig]:
    """A configuration class with the variant as its defaults, for tests that only take a class."""
    name = f"SurmConfig_{variant.structure}_{variant.form}"
    defaults = [(name, str, field(default=value)) for name, value in variant._asdict().items()]
    return make_dataclass(name, defaults, bases=(SurmConfig,), eq=False)


def options(lora: dict[str, Any], variant: Variant) -> dict[str, Any] | None:
    """What says the same as LoRA's options; None where one has no counterpart, such as `use_dora`."""
    found = {RENAMED.get(name, name): value for name, value in lora.items() if name not in ("r", "lora_alpha")}
    if "lora_alpha" in lora and variant.form == "weight":
        found["alpha"] = lora["lora_alpha"] / lora.get("r", LoraConfig.r)
    if found.get("bias") == "lora_only":
        found["bias"] = "surm_only"
    targets = found.get("target_modules") or []
    if any(target.endswith(LEFT_OUT[variant.form]) for target in ([targets] if isinstance(targets, str) else targets)):
        return None
    if variant.form == "adapter" and "target_modules" in found and not targets:
        found["target_modules"] = ADAPTED
    known = {entry.name for entry in fields(SurmConfig)}
    if not found.keys() <= known or isinstance(found.get("init_weights"), str):
        return None
    if found.get("init_weights") is False and variant.form == "weight":
        found["alpha"] = RANDOM_START * found.get("alpha", 1.0)
    return found | variant._asdict()


def config(lora: LoraConfig, variant: Variant) -> SurmConfig | None:
    """The configuration that says the same as LoRA's, if there is one."""
    default = LoraConfig()
    changed = {entry.name: getattr(lora, entry.name) for entry in fields(lora) if entry.init}
    found = options({name: value for name, value in changed.items() if value != getattr(default, name)}, variant)
    return None if found is None else SurmConfig(**found)


def translate(mark: pytest.Mark, asked: list[Variant]) -> pytest.Mark:
    """A `parametrize` mark with SURM's rows in place of all methods' rows, if there are any with LoRA; or as it is."""
    if mark.name != "parametrize" or len(mark.args) < 2:
        return mark
    names, values = mark.args[0], list(mark.args[1])
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    if names == ["model_id"]:
        return pytest.Mark("parametrize", (mark.args[0], list(dict.fromkeys(map(local, values)))), {}, _ispytest=True)
    found = [row for value in values for row in _rows(names, value, asked)]
    return pytest.Mark("parametrize", (mark.args[0], found), {}, _ispytest=True) if found else mark


def _rows(names: list[str], value: Any, asked: list[Variant]) -> Iterator[Any]:
    """One of LoRA's rows for each variant; nothing for another method's, or where an option has no counterpart."""
    if isinstance(value, type(pytest.param())):
        value = value.values if len(names) > 1 else value.values[0]
    row = dict(zip(names, value if len(names) > 1 else [value], strict=True))
    if not any(entry is LoraConfig or type(entry) is LoraConfig for entry in row.values()):
        return
    has_options = any(isinstance(entry, dict) for entry in row.values())
    for variant in asked:
        found = [_translated(entry, variant, has_options) for entry in row.values()]
        if None not in found:
            label = "-".join(str(entry) for entry in [row.get("test_name"), *variant] if entry)
            yield pytest.param(*found, id=label.replace("LoRA", "SURM"))


def _translated(entry: Any, variant: Variant, has_options: bool) -> Any:
    if entry is LoraConfig:
        return SurmConfig if has_options else preset(variant)
    if type(entry) is LoraConfig:
        return config(entry, variant)
    if isinstance(entry, dict):
        return options(entry, variant)
    if isinstance(entry, str):
        # "lora" alone asks for a check of LoRA's own sums; "lora+..." only chooses a model.
        return "surm" if entry == "lora" else local(entry)
    return entry


def variant_of(params: dict[str, Any]) -> Variant | None:
    """Which variant a test's parameters are about; None for a test of another method."""
    for value in params.values():
        if isinstance(value, dict) and {"structure", "form"} <= value.keys():
            return Variant(value["structure"], value["form"])
        if isinstance(value, SurmConfig) or (isinstance(value, type) and issubclass(value, SurmConfig)):
            variant = Variant(value.structure, value.form)
            if value is not SurmConfig:
                return variant
    return None
