"""Weight analyses as a table and a figure, beside the paper's Fig. 11."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from surm.methods.names import label, style_of
from surm.records.storage import read_json
from surm.report.drawing import draw_band, legend_below, line_of, marks, save, tidy
from surm.report.gather import REFERENCE
from surm.report.table import Formats, table_of
from surm.shared.errors import RecordError
from surm.shared.paths import PAPER

TABLE = Path("tables") / "weight_analysis.md"
FIGURE = Path("figures") / "weight_analysis.png"
PARTS = {"q": "query", "k": "key", "v": "value"}
LAYER_COLUMNS: Formats = {  # column -> (Markdown heading, number format)
    "layer": ("layer", ".0f"),
    "matrix": ("matrix", ""),
    "one_minus_cosine": ("1 - cosine", ".4f"),
    "relative_norm": ("relative norm", ".3f"),
    "rank": ("rank", ".0f"),
    "rank_float32": ("rank in float32", ".0f"),
    "largest_rank": ("of at most", ".0f"),
    "stable_rank": ("stable rank", ".1f"),
    "cka": ("CKA with full fine-tuning", ".3f"),
    "cka_before": ("before training", ".3f"),
}
COLUMNS: Formats = {
    "task": ("model on data", ""),
    "method": ("method", ""),
    "matrix": ("matrix", ""),
    "learning_rate": ("learning rate", "g"),
    "seeds": ("seeds", ".0f"),
    "one_minus_cosine": ("1 - cosine, mean over layers", ".4f"),
    "lowest": ("lowest", ".4f"),
    "highest": ("highest", ".4f"),
    "ratio": (f"times {REFERENCE}", ".2f"),
    "relative_norm": ("relative norm", ".3f"),
    "lowest_rank": ("lowest rank", ".0f"),
    "lowest_rank_float32": ("in float32", ".0f"),
    "largest_rank": ("of at most", ".0f"),
    "stable_rank": ("stable rank", ".1f"),
    "cka": ("CKA with full fine-tuning", ".3f"),
    "cka_before": ("before training", ".3f"),
}

Analysis = Mapping[str, Any]


def read(folder: Path) -> list[dict[str, Any]]:
    """The analyses of a folder, by task, method and seed."""
    analyses = [_read(path) for path in folder.glob("*.json")]
    return sorted(analyses, key=lambda found: (_task(found), _order(found), label(found["asked"]), _seed(found)))


def _read(path: Path) -> dict[str, Any]:
    try:
        analysis: dict[str, Any] = read_json(path)
        table_of(pd.DataFrame(analysis["rows"]).assign(matrix="")[list(LAYER_COLUMNS)], LAYER_COLUMNS).markdown()
        _task(analysis), _order(analysis), label(analysis["asked"]), _seed(analysis), analysis["measures"]
    except (RecordError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is no analysis ({error}): move it away and analyse its run again.") from None
    return analysis


def write(folder: Path, paper: Path = PAPER) -> Path:
    """Write table (.md and .csv) and figure of `folder/analysis/*.json`; return the table's path."""
    analyses = read(folder / "analysis")
    figure_11 = yaml.safe_load((paper / "fig11.yaml").read_text())
    cells = table_of(table(analyses, figure_11), COLUMNS)
    path = folder / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = "\n".join(f"* {line}" for line in _notes(analyses, figure_11))
    path.write_text(f"# What training did to the weights\n\n{cells.markdown()}\n{notes}\n", encoding="utf-8")
    path.with_suffix(".csv").write_text(cells.csv(), encoding="utf-8", newline="")
    figure(analyses, figure_11, folder / FIGURE)
    return path


def by_layer(analysis: Analysis) -> str:
    """One run's numbers, a row for each matrix, as Markdown."""
    frame = pd.DataFrame(analysis["rows"])
    frame["matrix"] = frame["part"].map(PARTS)
    title = f"{label(analysis['asked'])} on {_task(analysis)}, seed {_seed(analysis)}"
    return f"\n{title}, run {analysis['signature']}\n\n{table_of(frame, LAYER_COLUMNS).markdown()}"


def table(analyses: Sequence[Analysis], figure_11: Analysis) -> pd.DataFrame:
    """A row for each method and matrix, means over layers and seeds; the paper's own numbers come last."""
    frames = [
        pd.DataFrame(found["rows"]).assign(
            task=_task(found),
            method=label(found["asked"]),
            learning_rate=found["asked"]["optim"]["lr"],
            seed=_seed(found),
        )
        for found in analyses
    ] + [
        pd.DataFrame({"one_minus_cosine": values}).assign(
            task=_paper_task(figure_11), method=_paper_name(method), part=part
        )
        for method in figure_11["values"]["q"]
        for part, values in ((part, figure_11["values"][part][method]) for part in figure_11["values"])
    ]
    keys = ["task", "method", "learning_rate", "part"]
    groups = pd.concat(frames, ignore_index=True).groupby(keys, sort=False, dropna=False)
    summary = groups.agg(
        seeds=("seed", "nunique"),
        one_minus_cosine=("one_minus_cosine", "mean"),
        lowest=("one_minus_cosine", "min"),
        highest=("one_minus_cosine", "max"),
        relative_norm=("relative_norm", "mean"),
        lowest_rank=("rank", "min"),
        lowest_rank_float32=("rank_float32", "min"),
        largest_rank=("largest_rank", "max"),
        stable_rank=("stable_rank", "mean"),
        cka=("cka", "mean"),
        cka_before=("cka_before", "mean"),
    ).reset_index()
    reference = summary[summary["method"] == REFERENCE].set_index(["task", "part"])["one_minus_cosine"]
    of_reference = reference[~reference.index.duplicated()].reindex(pd.MultiIndex.from_frame(summary[["task", "part"]]))
    summary["ratio"] = summary["one_minus_cosine"] / of_reference.to_numpy()
    summary["matrix"] = summary["part"].map(PARTS)
    return summary[list(COLUMNS)]


def figure(analyses: Sequence[Analysis], figure_11: Analysis, path: Path) -> None:
    """Draw 1 - cosine of query and value by layer (mean and range of the seeds), CKA and spectra; the paper's below."""
    tasks = list(dict.fromkeys(_task(found) for found in analyses))
    picture = Figure(figsize=(13.6, 3.5 * (len(tasks) + 1)), dpi=160, layout="constrained")
    axes = picture.subplots(len(tasks) + 1, 4, squeeze=False)
    for panels, task in zip(axes, tasks, strict=False):
        methods: dict[str, list[Analysis]] = {}
        for found in analyses:
            if _task(found) == task:
                methods.setdefault(label(found["asked"]), []).append(found)
        _draw_task(panels, task, methods)
    _draw_paper(axes[-1], figure_11)
    distances = axes[:, :2].ravel()
    for one in distances[1:]:
        one.sharey(distances[0])
    for one in axes.ravel():
        tidy(one)
    legend_below(picture)
    save(picture, path)


# --- parts of the figure ---------------------------------------------------------------------------------------------


def _draw_task(panels: Sequence[Axes], task: str, methods: Mapping[str, Sequence[Analysis]]) -> None:
    for name, runs in methods.items():
        style = style_of(runs[0]["asked"]["structure"]["name"])
        look = line_of(style) | {"linewidth": 1.2, "label": name}
        for axes, part in zip(panels, ("q", "v"), strict=False):
            _draw_range(axes, [_by_layer(run, part, "one_minus_cosine") for run in runs], look)
        if all(run["full_run"] not in (None, run["signature"]) for run in runs):
            _draw_range(panels[2], [_by_layer(run, None, "cka") for run in runs], look)
        places = runs[0]["rows"][0]["singular_values"]["index"]
        spectra = np.array([line["singular_values"]["value"] for run in runs for line in run["rows"]])
        relative = (spectra / spectra[:, :1]).mean(axis=0)
        panels[3].plot(places, np.where(relative > 1e-8, relative, np.nan), **look)
    if before := [_by_layer(run, None, "cka_before") for runs in methods.values() for run in runs if run["full_run"]]:
        layers = np.arange(1, before[0].size + 1)
        panels[2].plot(layers, np.mean(before, axis=0), color="0.5", linestyle=":", label="before training")
    for axes, part in zip(panels, ("q", "v"), strict=False):
        axes.set(title=f"{PARTS[part]}: {task}", xlabel="layer", ylabel="1 - cosine(W + update, W)", yscale="log")
    panels[2].set(title="CKA with full fine-tuning", xlabel="layer", ylabel="linear CKA of the outputs of q, k and v")
    panels[3].set(title="spectrum of the update", xlabel="index", ylabel="relative singular value")
    panels[3].set(xscale="log", yscale="log")


def _draw_range(axes: Axes, runs: Sequence[Any], look: Mapping[str, Any]) -> None:
    layers = np.arange(1, len(runs[0]) + 1)
    columns = {"mean": np.mean(runs, axis=0), "min": np.min(runs, axis=0), "max": np.max(runs, axis=0)}
    draw_band(axes, pd.DataFrame(columns, index=layers), look, alpha=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _by_layer(run: Analysis, part: str | None, column: str) -> Any:
    """A run's numbers by layer, of one part or as the mean of all."""
    rows = pd.DataFrame(run["rows"])
    return rows[rows["part"].isin([part] if part else list(PARTS))].groupby("layer")[column].mean().to_numpy()


def _draw_paper(panels: Sequence[Axes], figure_11: Analysis) -> None:
    for axes, (part, methods) in zip(panels, figure_11["values"].items(), strict=False):
        for method, values in methods.items():
            style = style_of(method)
            look = marks(style) | {"linestyle": "--", "linewidth": 0.8}
            axes.plot(range(1, len(values) + 1), values, color=style.color, **look)
        axes.set(
            title=f"{PARTS[part]}: paper, {_paper_task(figure_11).removeprefix('paper: ')}",
            xlabel="layer",
            ylabel="1 - cosine (read off the image)",
            yscale="log",
            facecolor="0.97",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[len(figure_11["values"]) :]:
        axes.set_visible(False)


# --- words -----------------------------------------------------------------------------------------------------------


def _notes(analyses: Sequence[Analysis], figure_11: Analysis) -> list[str]:
    definitions = [f"{key}: {text}" for key, text in analyses[0]["measures"].items()] if analyses else []
    return [
        "1 - cosine, lowest and highest are over all layers and seeds; ranks are the lowest of all layers and seeds.",
        "Each method has its own tuned learning rate and its own scale of start: the distances say how far training "
        "went at these rates, not how far a structure must go.",
        *_beside(analyses),
        f"The paper's rows are {figure_11['place']}, read off its image with an error of {figure_11['error']:.0e}; "
        "ranks and CKA are not printed there by layer.",
        *definitions,
    ]


def _beside(analyses: Sequence[Analysis]) -> list[str]:
    """What the distances do not show: the first step alone differs as much, and full fine-tuning goes least far."""
    lines = []
    for task in dict.fromkeys(map(_task, analyses)):
        own = {label(found["asked"]): found for found in analyses if _task(found) == task}
        if not {REFERENCE, "circulant"} <= own.keys():
            continue
        lora, circulant = (_over_seeds(analyses, task, name) for name in (REFERENCE, "circulant"))
        n = int(circulant["largest_rank"].max())
        rates = {name: own[name]["asked"]["optim"]["lr"] for name in (REFERENCE, "circulant")}
        step = rates["circulant"] * n / (rates[REFERENCE] * np.sqrt(n / 3))
        farther = circulant["relative_norm"].mean() / lora["relative_norm"].mean()
        ratio = circulant["one_minus_cosine"].mean() / lora["one_minus_cosine"].mean()
        lines.append(
            f"{task}: a ratio of 1 - cosine shows step size and start, not structure. At these rates the first step of "
            f"Adam, by the rate in each entry, moves a weight of circulant about {step:.0f} times as far as one of "
            f"{REFERENCE} (rate x n against rate x sqrt(n / 3), from the usual starts); after training 1 - cosine is "
            f"{ratio:.0f} times {REFERENCE}'s and the update {farther:.1f} times as long."
        )
        if "full fine-tuning" in own:
            full = _over_seeds(analyses, task, "full fine-tuning").groupby("part")["one_minus_cosine"].mean()
            times = lora.groupby("part")["one_minus_cosine"].mean() / full
            lines.append(
                f"{task}: full fine-tuning goes {times.min():.0f} to {times.max():.0f} times less far than {REFERENCE} "
                "(1 - cosine, by matrix), so a large distance is no sign of being like full fine-tuning."
            )
    return lines


def _over_seeds(analyses: Sequence[Analysis], task: str, name: str) -> pd.DataFrame:
    """The rows of a method's seeds on a task."""
    chosen = [found for found in analyses if (_task(found), label(found["asked"])) == (task, name)]
    return pd.concat([pd.DataFrame(found["rows"]) for found in chosen])


def _task(analysis: Analysis) -> str:
    return f"{analysis['asked']['model']['name']} on {analysis['asked']['dataset']['name']}"


def _seed(analysis: Analysis) -> int:
    return int(analysis["asked"]["seed"])


_ORDER = ("lora", "circulant", "skew_circulant", "toeplitz", "kronecker", "ldr", "low_rank", "full")


def _order(analysis: Analysis) -> int:
    name = analysis["asked"]["structure"]["name"]
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _paper_task(figure_11: Analysis) -> str:
    return f"paper: {figure_11['model']} on {figure_11['dataset']}"


def _paper_name(method: str) -> str:
    return REFERENCE if method == "lora" else style_of(method).label
