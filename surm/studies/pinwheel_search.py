"""The declared search for what the paper's pinwheel (4.2, B.1) leaves open: data, activation and learning rates.

1. Data and activation, by the full network alone, so that no structure is favoured: the point of a small grid whose
   final losses are nearest the paper's curves of that network (log distance, summed over the two embeddings).
2. The learning rate of each reading, embedding and method, by the lowest mean final loss: the same rates for all, a
   factor of 3 apart, with more while the best is at an edge.

With `full_alone` it takes the data as found and searches the full network's rate alone, by the median loss of the last
twentieth of the epochs, a factor of sqrt(3) apart: whether it stays above low ranks, which it contains, for want of a
rate. Its seeds are no seeds of the study.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from surm.shared.paths import PAPER
from surm.studies.pinwheel import (
    EMBEDDINGS,
    FULL,
    FULL_RATES,
    METHODS,
    READINGS,
    SETTINGS,
    check_activation,
    check_noise,
    check_points,
    check_seeds_and_epochs,
    found_settings,
    late_losses,
    make_data,
    make_networks,
    significant,
    train,
)

LOSSES = PAPER / "pinwheel.yaml"


@dataclass
class PinwheelSearchOptions:
    name: str = "pinwheel_search"
    seeds: list[int] = field(default_factory=lambda: [100, 101])
    epochs: int = 2000
    points: list[int] = field(default_factory=lambda: [100, 200])
    noise: list[float] = field(default_factory=lambda: [0.1, 0.2])
    activation: list[str] = field(default_factory=lambda: ["relu", "tanh"])
    rates: list[float] = field(default_factory=lambda: [0.003, 0.009, 0.027])
    full_alone: bool = False


def validate(options: PinwheelSearchOptions) -> None:
    """Raise ValueError, one sentence, for a value that cannot be run."""
    check_seeds_and_epochs(options.seeds, options.epochs)
    for key in ("points", "noise", "activation"):
        if not getattr(options, key):
            raise ValueError(f"study.{key}=[]: give at least one value.")
    for points in options.points:
        check_points(points)
    for noise in options.noise:
        check_noise(noise)
    for activation in options.activation:
        check_activation(activation)
    if len(options.rates) < 2 or min(options.rates) <= 0:
        raise ValueError(f"study.rates={options.rates}: give two or more numbers above 0.")


def parts(options: PinwheelSearchOptions) -> list[dict[str, Any]]:
    """One part: the second choice rests on the first."""
    if options.full_alone:
        data = {key: found_settings()[key] for key in ("points", "noise", "activation")}
        shared = {"seeds": options.seeds, "epochs": options.epochs, "rates": sorted(options.rates)}
        return [{**shared, **data, "full_alone": True, "paper_losses": {}}]
    return [
        {
            "seeds": options.seeds,
            "epochs": options.epochs,
            "points": options.points,
            "noise": options.noise,
            "activation": options.activation,
            "rates": sorted(options.rates),
            "paper_losses": paper_losses(),
        }
    ]


def paper_losses() -> dict[str, float]:
    """The full network's final training loss in the paper, by embedding (Figs. 4 and 9)."""
    losses = yaml.safe_load(LOSSES.read_text())
    return {embedding: losses[embedding][FULL] for embedding in EMBEDDINGS}


def compute(part: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Search; gives `settings`, which `save` writes where the study reads them."""
    seeds, epochs = part["seeds"], part["epochs"]
    if part.get("full_alone"):
        return _search_full(part, say)

    def search(points: int, noise: float, activation: str, reading: str, embedding: str, method: str) -> Search:
        x, labels = make_data(seeds, points, noise)

        def loss_at(rate: float) -> float:
            networks = make_networks(method, reading, embedding, activation, seeds)
            return float(train(networks, x, labels, rate=rate, epochs=epochs).losses[-1].mean())

        found = best_rate(loss_at, part["rates"])
        data = f"{points} points, noise {noise:g}, {activation}"
        say(f"{data}; {reading}, embedding {embedding}, {method}: rate {found.rate:g}, loss {found.loss:.3f}")
        return found

    chosen: dict[str, Any] = {}
    full: dict[str, Search] = {}
    nearest, data = math.inf, []
    for points, noise, activation in product(part["points"], part["noise"], part["activation"]):
        setting = {"points": points, "noise": noise, "activation": activation}
        # The full network is the same in both readings.
        searches = {name: search(**setting, reading=READINGS[0], embedding=name, method=FULL) for name in EMBEDDINGS}
        losses = {embedding: found.loss for embedding, found in searches.items()}
        distance = sum(abs(math.log(losses[embedding] / part["paper_losses"][embedding])) for embedding in EMBEDDINGS)
        data.append({**setting, "losses": losses, "distance": significant(distance)})
        if distance < nearest:
            nearest, chosen, full = distance, setting, searches

    searches_of: dict[str, dict[str, dict[str, Search]]] = {
        reading: {
            embedding: {FULL: full[embedding]}
            | {name: search(**chosen, reading=reading, embedding=embedding, method=name) for name in METHODS}
            for embedding in EMBEDDINGS
        }
        for reading in READINGS
    }
    rates, tried = (
        {
            reading: {
                embedding: {name: getattr(found, what) for name, found in searches.items()}
                for embedding, searches in by_embedding.items()
            }
            for reading, by_embedding in searches_of.items()
        }
        for what in ("rate", "tried")
    )
    return {"settings": {**chosen, "rates": rates, "tried": {"data": data, "rates": tried}}}


def _search_full(part: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The full network's rate, by embedding; the full network is the same in both readings."""
    x, labels = make_data(part["seeds"], part["points"], part["noise"])
    searches = {}
    for embedding in EMBEDDINGS:

        def loss_at(rate: float, embedding: str = embedding) -> float:
            networks = make_networks(FULL, READINGS[0], embedding, part["activation"], part["seeds"])
            return float(late_losses(train(networks, x, labels, rate=rate, epochs=part["epochs"])).mean())

        found = searches[embedding] = best_rate(loss_at, part["rates"], factor=math.sqrt(3))
        say(f"full, embedding {embedding}: rate {found.rate:g}, late loss {found.loss:.3f}")
    rates = {embedding: {FULL: found.rate} for embedding, found in searches.items()}
    tried = {embedding: {FULL: found.tried} for embedding, found in searches.items()}
    data = {key: part[key] for key in ("points", "noise", "activation")}
    return {
        "settings": {**data, "rates": {READINGS[0]: rates}, "tried": {"data": [], "rates": {READINGS[0]: tried}}},
    }


def save(result: dict[str, Any], path: Path | None = None) -> None:
    """Write the settings that were found where the study reads them."""
    path = path or (SETTINGS if result["settings"]["tried"]["data"] else FULL_RATES)
    path.write_text(json.dumps(result["settings"], indent=1) + "\n")


class Search(NamedTuple):
    """The rate of the lowest loss, that loss, and each loss by its rate; None for one that is not finite."""

    rate: float
    loss: float
    tried: dict[str, float | None]


def best_rate(loss_at: Callable[[float], float], start: Sequence[float], *, factor: float = 3) -> Search:
    """Try the rates of `start`, and while the best is at an edge, one beyond it by the factor."""
    losses: dict[float, float] = {}

    def attempt(rate: float) -> None:
        loss = loss_at(rate)
        losses[rate] = significant(loss) if math.isfinite(loss) else math.inf

    for rate in start:
        attempt(rate)
    while (best := min(losses, key=losses.__getitem__)) in (min(losses), max(losses)):
        attempt(float(f"{best / factor if best == min(losses) else best * factor:.2g}"))
    tried = {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in sorted(losses.items())}
    return Search(best, losses[best], tried)
