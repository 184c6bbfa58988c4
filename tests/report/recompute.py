"""Means, differences and intervals of the published tables, from the records with NumPy alone, to compare with them."""

import csv
import json
import sys
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parents[2] / "results"
NAMES = {"linear_probe": "linear probe", "bitfit": "BitFit", "toeplitz": "Toeplitz", "kronecker": "Kronecker"}
NAMES |= {"circulant": "circulant", "ldr": "ldr, 1 term", "lora": "LoRA r=1", "full": "full fine-tuning"}
TABLES = {"laptop_digits": None, "laptop_valence": None, "small_table1_images": 188, "claims_gain": 188}


def quantile(normal, scale, freedom, level=0.975):
    """Of normal(0, normal^2) + scale t(freedom): both densities on a grid, convolved."""
    step = (normal + scale) / 400
    x = step * np.arange(-40_000, 40_001)
    total = (1 + (x / scale) ** 2 / freedom) ** (-(freedom + 1) / 2)
    if normal > step:
        inner = step * np.arange(-int(8 * normal / step), int(8 * normal / step) + 1)
        total = np.convolve(total, np.exp(-((inner / normal) ** 2) / 2), mode="same")
    return float(np.interp(level, np.cumsum(total) / total.sum(), x + step / 2))


def runs_of(table, steps):
    """(data set, method, rate) -> seed -> (N,) answers that were right, in percent."""
    found = {}
    for path in sorted((RESULTS / "runs").glob("*.predictions.json")):
        record = json.loads(path.with_name(path.name.replace(".predictions", "")).read_text())
        asked, kept = record["asked"], json.loads(path.read_text())
        structure, trainer = asked["structure"], asked["trainer"]
        weights = asked.get("placement", {}).get("form", "weight") == "weight" and structure.get("rank", 1) == 1
        searched = asked["optim"].get("head_lr") is not None  # the registered runs have a rate of the head
        plain = structure["name"] in NAMES and weights and structure.get("terms", 1) == 1
        shown = asked["dataset"]["evaluate_on"] == "test" and searched == table.startswith("claims")
        if plain and shown and trainer["max_steps"] == steps:
            key = asked["dataset"]["name"], NAMES[structure["name"]], asked["optim"]["lr"]
            right = np.array(kept["labels"]) == np.array(kept["predictions"])
            found.setdefault(key, {})[asked["seed"]] = 100.0 * right
    return found


def recompute(table):
    """(printed row, own numbers) of each row of a table that has runs: mean, sd, difference, low, high."""
    runs = runs_of(table, TABLES[table])
    for row in csv.DictReader((RESULTS / "tables" / f"{table}.csv").open()):
        task = row.get("dataset") or table.removeprefix("laptop_")
        own = runs.get((task, row["method"], float(row["learning_rate"])))
        reference = next((seeds for key, seeds in runs.items() if key[:2] == (task, "LoRA r=1")), None)
        if own and int(row["n"]):
            scores = np.array([right.mean() for right in own.values()])
            numbers = {"mean": scores.mean(), "sd": scores.std(ddof=1)}
            if row["difference"] and reference:
                d = np.array([own[seed] - reference[seed] for seed in sorted(own.keys() & reference.keys())])
                s, n = d.shape
                rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
                mse = (rest**2).sum() / ((s - 1) * (n - 1))
                msa, msb = n * d.mean(1).var(ddof=1), s * d.mean(0).var(ddof=1)
                half = quantile(np.sqrt(max(msb - mse, 0) / (s * n)), np.sqrt(msa / (s * n)), s - 1)
                numbers |= {"difference": d.mean(), "low": d.mean() - half, "high": d.mean() + half}
            yield row, numbers


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        for printed, numbers in recompute(name):
            print(name, printed["method"], *(f"{key} {value:.2f} ({printed[key]})" for key, value in numbers.items()))
