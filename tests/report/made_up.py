"""Record files of runs that never were, laid out like real ones."""

import hashlib
import json
from pathlib import Path

import numpy as np

STRUCTURES = {
    "linear probe": {"name": "linear_probe"},
    "BitFit": {"name": "bitfit"},
    "LoRA r=1": {"name": "lora", "rank": 1, "alpha": 1.0, "dropout": 0.0},
    "circulant": {"name": "circulant", "parametrization": "product", "terms": 1, "alpha": 1.0, "dropout": 0.0},
    "Toeplitz": {"name": "toeplitz", "symmetric": True, "factors": 2, "terms": 1, "alpha": 1.0, "dropout": 0.0},
    "Kronecker": {"name": "kronecker", "factor_shape": None, "terms": 1, "alpha": 1.0, "dropout": 0.0},
    "ldr, 1 term": {"name": "ldr", "terms": 1, "alpha": 1.0, "dropout": 0.0},
    "full fine-tuning": {"name": "full"},
}
TRAINABLE = {"linear probe": 0, "BitFit": 50_000, "full fine-tuning": 21_600_000}


def asked(structure, *, seed=0, model="builtin_vit", dataset="digits", lr=0.003, **more):
    return {
        "model": {"name": model, "revision": "1"},
        "dataset": {"name": dataset, "revision": "1", "evaluate_on": "test"},
        "structure": structure,
        "placement": {"form": "weight", "parts": ["q", "k", "v"]},
        "optim": {"lr": lr},
        "trainer": {"epochs": 3},
        "seed": seed,
        **more,
    }


def signature(request):
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]


def answers(labels, right):
    """Predictions that meet `labels` exactly where `right` is true (ten classes)."""
    return np.where(right, labels, (labels + 1) % 10)


def draw_right(accuracy, difficulty, generator):
    """Which examples a run gets right: the same examples are hard for every method."""
    return difficulty + 0.3 * generator.standard_normal(len(difficulty)) < np.quantile(difficulty, accuracy)


def write_run(folder, request, labels, right, *, published=False, status="finished", keep=True, **happened):
    """Write one record with its predictions and return the signature."""
    name = signature(request)
    accuracy = float(np.mean(right)) if len(right) else 0.0
    what = {
        "metrics": {"accuracy": accuracy},
        "primary_metric": "accuracy",
        "best_epoch_metrics": {"accuracy": min(1.0, accuracy + 0.005), "epoch": 2},
        "evaluation_examples": len(labels),
        "baselines": {"majority": 0.1},
        "trainable_parameters": 27_648,
        "head_parameters": 3_850,
        "total_parameters": 21_600_000,
        "history": history(accuracy, request["seed"]),
        "seconds_per_step": 0.2,
        "peak_memory_bytes": 2**30,
        "error": None,
    } | happened
    if status != "finished":
        what = {"history": [], "error": what["error"]}
    record = {"signature": name, "status": status, "asked": request, "happened": what, "where": {"surm": "0.1.0"}}
    folder = Path(folder)
    file = folder / f"{name}.json" if published else folder / name / "record.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record))
    if keep and status == "finished":
        stored = {"labels": labels.tolist(), "predictions": answers(labels, right).tolist()}
        file.with_name(f"{name}.predictions.json" if published else "predictions.json").write_text(json.dumps(stored))
    return name


def history(accuracy, seed):
    noise = np.random.default_rng(seed)
    steps = [
        {
            "step": s,
            "epoch": s / 40,
            "loss": 2 * (1 - accuracy + 0.02) ** (s / 120) * noise.uniform(0.8, 1.2),
            "lr": 0.001,
        }
        for s in range(10, 121, 10)
    ]
    epochs = [
        {"step": 40 * e, "epoch": float(e), "evaluation": {"accuracy": accuracy - 0.04 / e**2}} for e in (1, 2, 3)
    ]
    return sorted(steps + epochs, key=lambda entry: entry["step"])


def write_experiment(folder, accuracies, *, seeds=3, examples=600, sd=0.004, published=False, structures=None, **more):
    """Runs of several methods with the given mean accuracies; returns the planned signatures."""
    structures = structures or STRUCTURES
    generator = np.random.default_rng(5)
    labels, difficulty = generator.integers(0, 10, examples), generator.standard_normal(examples)
    return [
        write_run(
            folder,
            asked(structures[name], seed=seed, **more),
            labels,
            draw_right(min(0.999, accuracy + sd * generator.standard_normal()), difficulty, generator),
            published=published,
            trainable_parameters=TRAINABLE.get(name, 27_648),
        )
        for name, accuracy in accuracies.items()
        for seed in range(seeds)
    ]
