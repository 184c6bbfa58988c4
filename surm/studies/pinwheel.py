"""A small network on a pinwheel of five classes: what a structured matrix can do (paper 4.2, B.1, Figs. 4 and 9).

x (2) -> embedding (64) -> matrix under study (64 x 64) -> activation -> head (5). The paper's network has one hidden
layer, so nothing stands between embedding and matrix; the matrix has no bias, so that it alone is compared. What the
paper does not state is chosen by `pinwheel_search` and read from `results/pinwheel_settings.json`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from surm import structures
from surm.shared.paths import RESULTS
from surm.structures import Structure

SETTINGS = RESULTS / "pinwheel_settings.json"
FULL_RATES = RESULTS / "pinwheel_full_rates.json"  # of the full network, from a finer search
SEEDS_PER_PART = 3  # so that three seeds are the same part, whether more follow or not

CLASSES = 5
WIDTH = 64
OUTER_RADIUS = 25.0  # of the outliers
MAP_SIZE = 48  # cells a side in the map of decisions
CURVE_POINTS = 60

FULL = "full"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA r=1": ("low_rank", {"rank": 1}),
    "LoRA r=2": ("low_rank", {"rank": 2}),
    "LoRA r=4": ("low_rank", {"rank": 4}),
    "LoRA r=8": ("low_rank", {"rank": 8}),
    "circulant": ("circulant", {"parametrization": "product"}),
    "symmetric Toeplitz": ("toeplitz", {"symmetric": True, "factors": 2}),
    "Toeplitz": ("toeplitz", {"symmetric": False, "factors": 1}),
}
READINGS = ("in_place", "update")
EMBEDDINGS = ("frozen", "trained")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}


@dataclass
class PinwheelOptions:
    name: str = "pinwheel"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    epochs: int = 2000
    readings: list[str] = field(default_factory=lambda: list(READINGS))
    embeddings: list[str] = field(default_factory=lambda: list(EMBEDDINGS))
    points: int | None = None
    noise: float | None = None
    activation: str | None = None
    rate: float | None = None
    finer_full_rate: bool = False  # the full network's rate from the finer search


def validate(options: PinwheelOptions) -> None:
    """Raise ValueError, one sentence, for a value that cannot be run."""
    check_seeds_and_epochs(options.seeds, options.epochs)
    for key, values, allowed in (
        ("readings", options.readings, READINGS),
        ("embeddings", options.embeddings, EMBEDDINGS),
    ):
        if not values or not set(values) <= set(allowed):
            raise ValueError(f"study.{key}={values}: give one or both of {', '.join(allowed)}.")
    if options.points is not None:
        check_points(options.points)
    if options.noise is not None:
        check_noise(options.noise)
    if options.activation is not None:
        check_activation(options.activation)
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise ValueError(f"study.rate={options.rate}: give a number above 0, or null for the rates that were found.")


def check_seeds_and_epochs(seeds: Sequence[int], epochs: int) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"study.seeds={list(seeds)}: give different whole numbers of at least 0.")
    if epochs < 1:
        raise ValueError(f"study.epochs={epochs}: give a whole number of at least 1.")


def check_points(points: int) -> None:
    if points < 1:
        raise ValueError(f"study.points={points}: give a whole number of at least 1, the points of a class.")


def check_noise(noise: float) -> None:
    if not 0 <= noise < 1:
        raise ValueError(f"study.noise={noise}: give a share from 0 to below 1.")


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"study.activation={activation}: allowed are {', '.join(ACTIVATIONS)}.")


@cache
def found_settings() -> dict[str, Any]:
    """What `pinwheel_search` found."""
    settings: dict[str, Any] = json.loads(SETTINGS.read_text())
    return settings


def rates_of(options: PinwheelOptions, reading: str, embedding: str) -> dict[str, float]:
    """The learning rate of each method, the full network's first."""
    found: dict[str, float] = found_settings()["rates"][reading][embedding]
    rates = {method: options.rate or found[method] for method in (FULL, *METHODS)}
    if options.finer_full_rate and options.rate is None:
        rates[FULL] = json.loads(FULL_RATES.read_text())["rates"][READINGS[0]][embedding][FULL]
    return rates


def parts(options: PinwheelOptions) -> list[dict[str, Any]]:
    """One part for each reading, embedding and block of seeds; it holds the settings in full, the rates too."""
    found = found_settings()
    blocks = [options.seeds[at : at + SEEDS_PER_PART] for at in range(0, len(options.seeds), SEEDS_PER_PART)]
    return [
        {
            "reading": reading,
            "embedding": embedding,
            "seeds": block,
            "epochs": options.epochs,
            "points": found["points"] if options.points is None else options.points,
            "noise": found["noise"] if options.noise is None else options.noise,
            "activation": options.activation or found["activation"],
            "rates": rates_of(options, reading, embedding),
        }
        for reading in options.readings
        for embedding in options.embeddings
        for block in blocks
    ]


def compute(part: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Train every method on every seed of a part.

    Gives `rows` (one for each method and seed: final loss, median loss of the last twentieth of the epochs, final
    accuracy on the training points, linear CKA of the hidden layer's output to the full network of the same seed,
    trained parameters of the matrix, rate), `curves` (losses of each seed at `epochs`) and `regions` (the first seed's
    points, and the class decided at each cell of a square map, one string of digits a row, lowest row first).
    """
    seeds = part["seeds"]
    x, labels = make_data(seeds, part["points"], part["noise"])
    epochs = spaced_epochs(part["epochs"])
    cells = map_cells()
    rows, curves, decisions = [], {}, {}
    reference: Tensor | None = None
    for method, rate in part["rates"].items():
        networks = make_networks(method, part["reading"], part["embedding"], part["activation"], seeds)
        trained = train(networks, x, labels, rate=rate, epochs=part["epochs"])
        hidden, logits = trained(x)
        reference = hidden if reference is None else reference  # the full network comes first
        late = late_losses(trained)
        accuracy = (logits.argmax(dim=-1) == labels).double().mean(dim=-1)
        rows += [
            {
                "method": method,
                "seed": seed,
                "loss": significant(trained.losses[-1, at]),
                "late_loss": significant(late[at]),
                "accuracy": significant(accuracy[at]),
                "cka": significant(linear_cka(hidden[at], reference[at])),
                "parameters": num_parameters(method),
                "rate": rate,
            }
            for at, seed in enumerate(seeds)
        ]
        curves[method] = [[significant(loss) for loss in member] for member in trained.losses[epochs].T]
        classes = trained(cells.expand(len(seeds), *cells.shape))[1][0].argmax(dim=-1).reshape(MAP_SIZE, MAP_SIZE)
        decisions[method] = ["".join(map(str, row)) for row in classes.tolist()]
        say(f"{part['reading']}, embedding {part['embedding']}, {method}: loss {trained.losses[-1].mean():.3f}")
    return {
        "rows": rows,
        "curves": {"epochs": epochs, "losses": curves},
        "regions": {
            "seed": seeds[0],
            "radius": OUTER_RADIUS,
            "points": [[round(value, 2) for value in point] for point in x[0].tolist()],
            "labels": labels[0].tolist(),
            "decisions": decisions,
        },
    }


# --- data -------------------------------------------------------------------------------------------------------------


def make_data(seeds: Sequence[int], points: int, noise: float) -> tuple[Tensor, Tensor]:
    """Points (S, 5 points, 2) and labels (S, 5 points), each seed its own draw."""
    draws = [make_pinwheel(seed, points, noise) for seed in seeds]
    return torch.stack([x for x, _ in draws]), torch.stack([labels for _, labels in draws])


def make_pinwheel(seed: int, points: int, noise: float) -> tuple[Tensor, Tensor]:
    """Five bent spokes to a radius of about 17, `points` of each class, of which a share of `noise` are outliers.

    A spoke is a normal blob, radius 1 +- 0.3 and width 0.1, turned by 0.25 exp(radius) and scaled by 10 (the usual
    pinwheel, Johnson et al. 2016). An outlier keeps its label and lies anywhere in the disc of radius 25.
    """
    generator = torch.Generator().manual_seed(seed)
    outliers = round(noise * points)
    along = 1 + 0.3 * torch.randn(CLASSES, points - outliers, generator=generator)
    across = 0.1 * torch.randn(CLASSES, points - outliers, generator=generator)
    spokes = 10 * _turned(along, across, 2 * math.pi / CLASSES * torch.arange(CLASSES)[:, None] + 0.25 * along.exp())
    radius = OUTER_RADIUS * torch.rand(CLASSES, outliers, generator=generator).sqrt()
    angle = 2 * math.pi * torch.rand(CLASSES, outliers, generator=generator)
    scattered = _turned(radius, torch.zeros_like(radius), angle)
    labels = torch.arange(CLASSES).repeat_interleave(points)
    return torch.cat((spokes, scattered), dim=1).flatten(0, 1), labels


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> Tensor:
    return torch.stack((x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()), dim=-1)


def map_cells() -> Tensor:
    """Centres (cells, 2) of the map's cells, row by row, lowest row first."""
    half = OUTER_RADIUS / MAP_SIZE
    axis = torch.linspace(half - OUTER_RADIUS, OUTER_RADIUS - half, MAP_SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)


# --- network ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """(..., 2) -> output of the hidden layer (..., 64) and logits (..., 5).

    The matrix is the weight alone (full), the weight, frozen, plus a structured update that starts at zero (`update`),
    or a structured matrix alone (`in_place`), which starts at the weight's Frobenius norm: where the matrix is all
    there is, a zero start behind a ReLU has no gradient and the loss stays at ln 5.
    """

    def __init__(self, method: str, reading: str, embedding: str, activation: str) -> None:
        super().__init__()
        self.embedding = nn.Linear(2, WIDTH).requires_grad_(embedding == "trained")
        self.head = nn.Linear(WIDTH, CLASSES)
        self.weight = nn.Linear(WIDTH, WIDTH, bias=False).weight
        self.structure: Structure | None = None  # comes last: what is drawn before is the same for every method
        self.activation = ACTIVATIONS[activation]
        if method == FULL:
            return
        name, options = METHODS[method]
        self.structure = structures.build(name, WIDTH, WIDTH, **options)
        self.weight.requires_grad_(False)
        if reading == "in_place":
            start_at_norm(self.structure, self.weight.norm())
            self.weight.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The dense form is faster than the fast product at this width, and both are differentiable.
        matrix = self.weight if self.structure is None else self.weight + self.structure.dense()
        hidden = self.activation(self.embedding(x) @ matrix.mT)
        return hidden, self.head(hidden)


@torch.no_grad()
def start_at_norm(structure: Structure, norm: Tensor) -> None:
    """Draw every factor from N(0, 1), then scale all of them alike so that the matrix has this Frobenius norm."""
    factors = list(structure.parameters())
    for factor in factors:
        factor.normal_()
    scale = (norm / structure.dense().norm()) ** (1 / len(factors))  # the matrix is a product of its factors
    for factor in factors:
        factor.mul_(scale)


def num_parameters(method: str) -> int:
    """Trained parameters of the matrix."""
    if method == FULL:
        return WIDTH * WIDTH
    name, options = METHODS[method]
    return structures.structure_class(name).num_parameters(WIDTH, WIDTH, **options)


def make_networks(method: str, reading: str, embedding: str, activation: str, seeds: Sequence[int]) -> list[Network]:
    """One network a seed; a seed's embedding, head and weight are the same for every method."""
    networks = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            networks.append(Network(method, reading, embedding, activation))
    return networks


# --- training ---------------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """Networks of one architecture with their parameters stacked, and their losses (epochs + 1, S)."""

    network: Network
    parameters: dict[str, Tensor]
    losses: Tensor

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden outputs (S, N, 64) and logits (S, N, 5) at points (S, N, 2)."""
        hidden, logits = vmap(lambda own, x: functional_call(self.network, own, (x,)))(self.parameters, x)
        return hidden, logits


def late_losses(trained: Trained) -> Tensor:
    """Median loss (S,) of the last twentieth of the epochs: a constant rate ends anywhere within its noise."""
    epochs = len(trained.losses) - 1
    return trained.losses[-max(1, epochs // 20) :].quantile(0.5, dim=0)


def train(networks: Sequence[Network], x: Tensor, labels: Tensor, *, rate: float, epochs: int) -> Trained:
    """Full-batch Adam on all networks at once, points x (S, N, 2) and labels (S, N).

    The sum of the losses has each network's own gradient, and Adam works entry by entry: the networks do not interact.
    """
    network = networks[0]
    parameters, _ = stack_module_state(list(networks))
    optimizer = torch.optim.Adam([p for p in parameters.values() if p.requires_grad], lr=rate, fused=True)

    def loss(own: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(network, own, (x,))[1], labels)

    losses = torch.empty(epochs + 1, len(networks))
    for epoch in range(epochs):
        current = vmap(loss)(parameters, x, labels)
        losses[epoch] = current.detach()
        optimizer.zero_grad()
        current.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        losses[epochs] = vmap(loss)(parameters, x, labels)
    return Trained(network, parameters, losses)


# --- measures ---------------------------------------------------------------------------------------------------------


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of features x (N, p) and y (N, q), computed in float64.

    |Y^T X|^2 / (|X^T X| |Y^T Y|) in Frobenius norms, columns centred (Kornblith et al. 2019): 1 for equal features up
    to rotation and scale, 0 for unrelated ones; the quantity of the paper's Table 8.
    """
    x, y = (features.double() - features.double().mean(dim=0) for features in (x, y))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def spaced_epochs(epochs: int) -> list[int]:
    """About 60 epochs from 1 to the last, evenly spaced on a log axis, after the untrained network's 0."""
    return [0, *sorted({round(epochs ** (at / (CURVE_POINTS - 1))) for at in range(CURVE_POINTS)})]


def significant(value: Tensor | float) -> float:
    """Six significant digits."""
    return float(f"{float(value):.6g}")
