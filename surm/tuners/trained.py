"""What is made of trained adapters: shorter ones, weighted sums, and the error of a conversion to LoRA."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from surm.structures import Structure
from surm.structures.family import ConstantDiagonals, Family
from surm.structures.gated import Gated
from surm.tuners.adapter import SurmAdapter
from surm.tuners.config import SurmConfig
from surm.tuners.layer import SurmLayer, SurmLinear, SurmWeight

Kind = tuple[str, dict[str, Any]]  # name and options of a structure
Terms = list[tuple[float, Structure]]  # of a sum, each with its factor

SUMS = ("linear", "cat", "svd")  # names of LoRA's ways to the sum of updates, exact or not; here there is one


class Total(NamedTuple):
    """The sum in one layer: its terms for each part, the kind of structure that takes it, and whether that is exact."""

    parts: list[Terms]
    kind: Kind
    exact: bool


class Place(NamedTuple):
    """Where an adapter has a structure."""

    module: str  # name of the layer
    name: str  # what `structure_pattern` calls it: a part of a fused layer by its own name behind the layer's
    layer: SurmLayer
    holder: nn.Module
    key: str  # of the structure in the holder


def _places(model: nn.Module, configs: Mapping[str, SurmConfig], adapter_name: str) -> list[Place]:
    if adapter_name not in configs:
        raise ValueError(f"There is no adapter {adapter_name!r}: give one of {', '.join(configs)}.")
    places = []
    for module, layer in model.named_modules():
        for holder, key in layer.holders(adapter_name) if isinstance(layer, SurmLayer) else ():
            name = module
            if isinstance(layer, SurmWeight) and len(layer.parts) > 1:
                name += next(f".{part}" for part in layer.parts if getattr(layer, f"surm_{part}") is holder)
            places.append(Place(module, name, layer, holder, key))
    return places


def collapse(model: nn.Module, configs: dict[str, SurmConfig], adapters: Sequence[str]) -> None:
    """What `SurmModel.collapse` says, of these adapters; their configurations then name the new structures."""
    for adapter, structures in [(adapter, _collapsed(_places(model, configs, adapter))) for adapter in adapters]:
        for place, structure in structures:
            place.holder.register_module(place.key, structure)
        kinds = {place.name: (structure.name, dict(structure.options)) for place, structure in structures}
        configs[adapter] = _with_structures(configs[adapter], kinds)


def _collapsed(places: Iterable[Place]) -> list[tuple[Place, Structure]]:
    """The structures, collapsed, each with its place."""
    collapsed = []
    for place in places:
        structure = place.holder.get_submodule(place.key)
        if not isinstance(structure, Structure):
            raise ValueError("bottleneck cannot be collapsed: an activation stands between its two matrices.")
        trained = any(parameter.requires_grad for parameter in structure.parameters())
        collapsed.append((place, structure.collapse().requires_grad_(trained)))
    return collapsed


def compact(model: nn.Module, configs: dict[str, SurmConfig], adapters: Sequence[str]) -> None:
    """What `SurmModel.compact` says; a layer in which no adapter is left stays around its base layer."""
    places = {adapter: _places(model, configs, adapter) for adapter in adapters}
    for adapter in adapters:
        if any(adapter in place.layer.merged_adapters for place in places[adapter]):
            raise ValueError(f"Adapter {adapter!r} is merged: call unmerge_adapter() first.")
    for adapter in adapters:
        kinds = {place.name: _compact(place, configs[adapter]) for place in places[adapter]}
        # Of layers alone: an adapter's body has always an inner matrix. A fused layer has several places.
        emptied = {
            place.module: place.layer
            for place in places[adapter]
            if isinstance(place.layer, SurmWeight) and not any(place.layer.structures(adapter))
        }
        for layer in emptied.values():
            for settings in (getattr(layer, name) for name in layer.other_param_names):
                settings.pop(adapter)
        kinds = {place.name: kinds[place.name] for place in places[adapter] if place.module not in emptied}
        kinds |= dict.fromkeys(emptied)
        configs[adapter] = _with_structures(configs[adapter], kinds)


def _compact(place: Place, config: SurmConfig) -> Kind | None:
    """Take out of one structure what its gates switch off; its kind then, None where nothing is left of it."""
    structure = place.holder.get_submodule(place.key)
    if isinstance(structure, Gated):
        on = structure.gates() != 0
        if place.layer.form == "adapter" and not on.any():
            on[0] = True  # a zero matrix, as its body has a bias too
        if not on.any():
            del cast(nn.ModuleDict, place.holder)[place.key]
            return None
        if not on.all():
            structure = structure.keep(on)
            place.holder.register_module(place.key, structure)
    if isinstance(structure, Structure):
        return structure.name, dict(structure.options)
    own = config.for_module(place.name)
    return own.structure, dict(own.structure_options or {})


@torch.no_grad()
def conversion_error(model: nn.Module, ranks: Iterable[int], adapter_name: str = "default") -> dict[int, float]:
    """By rank, the error of what `peft.convert_to_lora` makes of an adapter in weight form, over all its layers.

    Or of what an adapter without an activation is merged as, in linear layers. It keeps the leading singular values of
    each update: sqrt(sum of the squares of the others / sum of all squares).
    O(out_features in_features min(out_features, in_features)) a layer, once for all ranks.

    Raises:
        ValueError: no linear layer has such an adapter, or its updates are all zero.
    """
    layers = [
        layer
        for layer in model.modules()
        if (isinstance(layer, SurmLinear) and adapter_name in layer.alpha)
        or (isinstance(layer, SurmAdapter) and adapter_name in layer.surm_adapter and not layer.obstacle(adapter_name))
    ]
    energies = [torch.linalg.svdvals(layer.get_delta_weight(adapter_name)).double().square() for layer in layers]
    total = sum(float(energy.sum()) for energy in energies)
    if not total:
        raise ValueError(f"No linear layer has an update called {adapter_name!r} that is not zero: name a trained one.")
    return {rank: (sum(float(energy[rank:].sum()) for energy in energies) / total) ** 0.5 for rank in ranks}


def add_weighted(
    model: nn.Module,
    configs: dict[str, SurmConfig],
    inject: Callable[[str], None],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
) -> dict[str, float]:
    """What `SurmModel.add_weighted_adapter` says.

    Args:
        model: the adapted model.
        configs: its configurations by adapter, which get one more.
        inject: puts the layers of the adapter of that name, whose configuration is there, into the model.
    """
    _check(configs, adapters, weights, adapter_name)
    pairs = list(zip(adapters, weights, strict=True))
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, SurmWeight) and any(adapter in layer.alpha for adapter in adapters)
    }
    sums = {name: _sum(layer, pairs, configs, name) for name, layer in layers.items()}
    config = _config([configs[adapter] for adapter in adapters], layers)
    configs[adapter_name] = _with_structures(config, {name: total.kind for name, total in sums.items()})
    try:
        inject(adapter_name)
    except Exception:
        del configs[adapter_name]
        raise
    errors = {name: _fill(layer, adapter_name, sums[name]) for name, layer in layers.items()}
    inexact = [name for name, total in sums.items() if not total.exact]
    if inexact:
        worst = max(inexact, key=errors.__getitem__)
        warnings.warn(
            f"Adapter {adapter_name} is the nearest to the sum in {len(inexact)} of {len(layers)} modules, whose "
            f"structures differ or have other options: the error is at most {errors[worst]:.1%} of it, in {worst}.",
            stacklevel=3,
        )
    return errors


def check_sum_options(combination_type: str, others: Mapping[str, Any]) -> None:
    """Raises ValueError, in one sentence, for an option of LoRA's that asks for anything but the weighted sum."""
    if combination_type not in SUMS:
        raise ValueError(
            f"combination_type={combination_type!r} is no sum of updates: leave it out, or give {', '.join(SUMS)}."
        )
    for name, value in others.items():
        raise ValueError(f"{name}={value!r} is not taken by a sum of structured updates: leave it out.")


def _with_structures(config: SurmConfig, kinds: Mapping[str, Kind | None]) -> SurmConfig:
    """A copy of the configuration with the given structures by name: the commonest for all, patterns for the rest.

    None leaves a module or a part out, as it stays where the configuration has it already.
    """
    left_out = {name: None for name, value in (config.structure_pattern or {}).items() if value is None}
    left_out |= {_key(name, kinds): None for name, kind in kinds.items() if kind is None}
    found = {name: kind for name, kind in kinds.items() if kind is not None}
    config = copy.copy(config)
    others = {}
    if found:
        [(commonest, _)] = Counter(map(repr, found.values())).most_common(1)
        config.structure, config.structure_options = next(kind for kind in found.values() if repr(kind) == commonest)
        others = {
            _key(name, kinds): {"structure": structure, "structure_options": options}
            for name, (structure, options) in found.items()
            if repr((structure, options)) != commonest
        }
    config.structure_pattern = (others | left_out) or None
    return config


def _key(name: str, names: Iterable[str]) -> str:
    """What matches this name and no other one that ends like it."""
    return f"^{name}" if any(other.endswith(f".{name}") for other in names) else name


def _check(
    configs: Mapping[str, SurmConfig], adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    if not adapters or len(adapters) != len(weights):
        raise ValueError(
            f"There are {len(adapters)} adapters and {len(weights)} weights: give at least one, and a weight for each."
        )
    if adapter_name in configs:
        raise ValueError(f"Adapter {adapter_name} exists already: give the sum another name.")
    for adapter in adapters:
        if adapter not in configs:
            raise ValueError(f"Adapter {adapter} does not exist")
        if configs[adapter].form == "adapter":
            raise ValueError(
                f"Adapter {adapter} is of form='adapter', whose activation leaves nothing to add up: give adapters of "
                "form='weight'."
            )
        for kind in configs[adapter].structures():
            if kind.needs_weight or kind.needs_place or kind.shares:
                raise ValueError(
                    f"Adapter {adapter} has the structure {kind.name}, which takes no sum, as more than its parameters "
                    "makes it: give adapters of other structures."
                )
        if configs[adapter].modules_to_save:
            raise ValueError(
                f"Adapter {adapter} has modules_to_save, which are no updates that add up: give adapters without them."
            )


def _config(configs: Sequence[SurmConfig], layers: Mapping[str, SurmWeight]) -> SurmConfig:
    """That of the first adapter, for all the layers and parts of any, without what the sum holds already."""
    selections = [config.fused_parts for config in configs]
    parts = dict.fromkeys(chain(*(layer.parts for layer in layers.values())))
    chosen = [part for part in parts if any(part in (selection or ()) for selection in selections)]
    return replace(
        configs[0],
        target_modules=set(layers),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        alpha=1.0,
        alpha_pattern=None,
        structure_pattern=None,
        bias="none",
        init_weights=True,
        fused={key: value for config in configs for key, value in (config.fused or {}).items()} or None,
        fused_parts=None if None in selections else chosen,
    )


def _sum(layer: SurmWeight, pairs: Sequence[tuple[str, float]], configs: Mapping[str, SurmConfig], name: str) -> Total:
    parts: list[Terms] = [[] for _ in layer.parts]
    for adapter, weight in pairs:
        for index, structure in layer.structures(adapter):
            parts[index].append((weight * layer.alpha[adapter], structure))
    config = next(configs[adapter] for adapter, _ in pairs if adapter in layer.alpha).for_module(name)
    kind = (config.structure, dict(config.structure_options or {}))
    groups = [[structure for _, structure in terms] for terms in parts if terms]
    species = {_species(structure) for group in groups for structure in group}
    if len(species) > 1 or any("terms" not in family.options for family in _families(groups[0][0])):
        return Total(parts, kind, exact=False)
    if _is_linear(groups[0][0]):
        kind[1]["terms"] = 1
        if "parametrization" in groups[0][0].option_rules:
            kind[1]["parametrization"] = "direct"
    else:
        kind[1]["terms"] = max(sum(structure.options["terms"] for structure in group) for group in groups)
    return Total(parts, kind, exact=True)


def _families(structure: Structure) -> list[Family]:
    return [module for module in structure.modules() if isinstance(module, Family)]


def _is_linear(structure: Structure) -> bool:
    return all(isinstance(family, ConstantDiagonals) and family.is_linear() for family in _families(structure))


def _species(structure: Structure) -> str:
    """Structures of one species add up within it."""
    free = {"terms", "parametrization"} if _is_linear(structure) else {"terms"}
    return repr(
        (structure.name, sorted((name, value) for name, value in structure.options.items() if name not in free))
    )


@torch.no_grad()
def _fill(layer: SurmWeight, adapter_name: str, total: Total) -> float:
    """Set the new adapter's structures in a layer, which are zero, and return the relative error."""
    error = norm = 0.0
    for index, target in layer.structures(adapter_name):
        terms = total.parts[index]
        if not terms:
            continue
        if not total.exact:
            dense = _dense(terms)
            nearest = type(target).nearest(dense, **target.options)
            target.load_state_dict(nearest.state_dict())
            error += (nearest.dense() - dense).square().sum().item()
            norm += dense.square().sum().item()
        elif _is_linear(target):
            _add_generators(target, terms)
        else:
            _join_terms(target, terms)
    return (error / norm) ** 0.5 if norm else 0.0


def _dense(terms: Terms) -> Tensor:
    return torch.stack([factor * structure.dense(torch.float64) for factor, structure in terms]).sum(dim=0)


def _add_generators(target: Structure, terms: Terms) -> None:
    for index, family in enumerate(_families(target)):
        assert isinstance(family, ConstantDiagonals)
        generators = []
        for factor, structure in terms:
            one = _families(structure)[index]
            assert isinstance(one, ConstantDiagonals)
            generators.append(factor * one.generator(torch.float64))
        family.set_generator(torch.stack(generators).sum(dim=0))


def _join_terms(target: Structure, terms: Terms) -> None:
    """Put the terms one behind the other, the factor on the first parameter, which all families are linear in."""
    for index, family in enumerate(_families(target)):
        start = 0
        for factor, structure in terms:
            source = _families(structure)[index]
            stop = start + structure.options["terms"]
            for scale, into, parameter in zip((factor, 1.0), family.parameters(), source.parameters(), strict=False):
                into[start:stop] = scale * parameter
            start = stop
