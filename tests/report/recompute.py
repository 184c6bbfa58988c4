"""Means, differences and intervals of the published tables, from the records with NumPy alone, to compare with them."""

import csv
import json
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from surm.methods.names import label

RESULTS = Path(__file__).resolve().parents[2] / "results"
OLDER = {"laptop_digits": None, "laptop_valence": None, "small_table1_images": 188}  # with their numbers of steps
REGISTERED = sorted(path.stem for path in (RESULTS / "tables").glob("claims_*.csv"))
PIXELS = {"claims_headroom_textile": 98}  # of a table's images, where they are not 42 and no column says it
TABLES = [*OLDER, *REGISTERED]


def quantile(normal, scales, freedom, level=0.975):
    """Of normal(0, normal^2) + the sum of scale t(freedom): densities on one grid, convolved."""
    step = (normal + sum(scales)) / 50
    x, total = step * np.arange(-5000, 5001), None
    densities = [(1 + (x / scale) ** 2 / freedom) ** (-(freedom + 1) / 2) for scale in scales if scale > 0]
    densities += [np.exp(-((x / normal) ** 2) / 2)] if normal > step / 4 else []
    for density in densities:
        total = density if total is None else np.convolve(total, density, mode="same")
    return 0.0 if total is None else float(np.interp(level, np.cumsum(total) / total.sum(), x + step / 2))


def difference(own, other):
    """Mean, sd of the examples' part and scale of the seeds' part of a paired difference, and its number of seeds."""
    d = np.array([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])
    s, n = d.shape
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    mse = (rest**2).sum() / ((s - 1) * (n - 1))
    msa, msb = n * d.mean(1).var(ddof=1), s * d.mean(0).var(ddof=1)
    return d.mean(), np.sqrt(max(msb - mse, 0) / (s * n)), np.sqrt(msa / (s * n)), s


@cache
def records():
    """What was asked, and the (N,) answers that were right in percent, of each run on a test split."""
    found = []
    for path in sorted((RESULTS / "runs").glob("*.predictions.json")):
        asked = json.loads(path.with_name(path.name.replace(".predictions", "")).read_text())["asked"]
        if asked["dataset"]["evaluate_on"] == "test":
            kept = json.loads(path.read_text())
            found.append((asked, 100.0 * (np.array(kept["labels"]) == np.array(kept["predictions"]))))
    return found


def runs_of(table):
    """(data set, fraction, image size, method, rate) -> seed -> the answers that were right."""
    found = {}
    for asked, right in records():
        # The registered runs have a rate of the head; those that show the headroom have seeds of their own.
        registered, size = asked["optim"].get("head_lr") is not None, asked["model"].get("image_size") or 42
        meant = registered and (asked["seed"] >= 100) == table.startswith("claims_headroom")
        if meant if table in REGISTERED else not registered and asked["trainer"]["max_steps"] == OLDER[table]:
            task = asked["dataset"]["name"], float(asked["dataset"].get("fraction", 1)), int(size)
            found.setdefault((*task, label(asked), asked["optim"]["lr"]), {})[asked["seed"]] = right
    return found


def recompute(table):
    """(printed row, own numbers) of each row of a table that has runs: mean, sd, difference, low, high."""
    runs = runs_of(table)
    for row in csv.DictReader((RESULTS / "tables" / f"{table}.csv").open()):
        name = row.get("dataset") or table.removeprefix("laptop_")
        task = name, float(row.get("fraction", 1)), int(row.get("image_size") or PIXELS.get(table, 42))
        own = runs.get((*task, row["method"], float(row["learning_rate"])))
        reference = next((seeds for key, seeds in runs.items() if key[:4] == (*task, "LoRA r=1")), None)
        if own and int(row["n"]):
            scores = np.array([right.mean() for right in own.values()])
            numbers = {"n": len(scores), "mean": scores.mean()}
            numbers |= {"sd": scores.std(ddof=1)} if row["sd"] else {}
            if row["low"] and reference:
                mean, normal, scale, seeds = difference(own, reference)
                half = quantile(normal, [scale], seeds - 1)
                numbers |= {"difference": mean, "low": mean - half, "high": mean + half}
            yield row, numbers


def recompute_primary():
    """(claim, printed numbers, own ones) of each primary claim about a mean over tasks: difference, low, high."""
    claims = yaml.safe_load((RESULTS / "papers" / "surm" / "claims.yaml").read_text())
    for row in csv.DictReader((RESULTS / "tables" / "primary_claims.csv").open()):
        rule = claims[row["claim"]]["rule"]
        printed = re.fullmatch(
            r"(\S+) \[(\S+), (\S+)\] points, \d+ seeds(, mean of \d+ tasks)?(, adjusted.*)?", row["found"]
        )
        if printed and "minus" in rule:
            own = {key[0]: {} for key in runs_of(claims[row["claim"]]["table"])}
            for key, seeds in runs_of(claims[row["claim"]]["table"]).items():
                own[key[0]][key[3]] = seeds
            parts = [difference(own[task][rule["method"]], own[task][rule["minus"]]) for task in rule["datasets"]]
            means, normals, scales, seeds = map(np.array, zip(*parts, strict=True))
            half = quantile(np.sqrt((normals**2).sum()) / len(parts), scales / len(parts), seeds[0] - 1)
            yield row["claim"], printed.groups()[:3], (means.mean(), means.mean() - half, means.mean() + half)


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        for printed, numbers in recompute(name):
            print(name, printed["method"], *(f"{key} {value:.2f} ({printed[key]})" for key, value in numbers.items()))
    for claim, found, numbers in recompute_primary():
        print(claim, found, *(f"{number:.2f}" for number in numbers))
