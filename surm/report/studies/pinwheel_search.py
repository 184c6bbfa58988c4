"""Report of `pinwheel_search`: what was tried for the settings that the paper's pinwheel leaves open."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from surm.records.record import Record
from surm.report.drawing import Picture
from surm.report.studies.pinwheel import READINGS
from surm.report.table import Formats

COLUMNS: Formats = {
    "choice": ("choice of", ""),
    "points": ("points of a class", ",.0f"),
    "noise": ("outliers (%)", ".0f"),
    "activation": ("activation", ""),
    "reading": ("matrix", ""),
    "embedding": ("embedding", ""),
    "method": ("method", ""),
    "loss": ("final training loss", ".3f"),
    "rate": ("learning rate chosen", "g"),
    "tried": ("losses tried, by learning rate", ""),
}


def table(records: Sequence[Record]) -> pd.DataFrame:
    """The data that were tried with the full network, then every learning rate that was tried on the chosen data."""
    return pd.DataFrame(
        [row for record in records for row in _rows(record.happened["settings"])], columns=list(COLUMNS)
    )


def effects(records: Sequence[Record]) -> dict[str, list[float]]:
    """Nothing: no claim is about the search."""
    return {}


def pictures(records: Sequence[Record]) -> list[Picture]:
    """None: the table says it all."""
    return []


def notes(records: Sequence[Record]) -> list[str]:
    """How the choices were made."""
    lines = []
    for record in records:
        asked, found = record.asked["study"], record.happened["settings"]
        paper = " and ".join(f"{loss:.2f} (embedding {name})" for name, loss in asked["paper_losses"].items())
        seeds = ", ".join(map(str, asked["seeds"]))
        if asked.get("full_alone"):
            lines.append(
                "The full network's learning rate alone, on the data found before: lowest mean of the median loss over "
                "the last twentieth of the epochs, more by factors of sqrt(3) while the best was at an edge. "
                f"{asked['epochs']:,} epochs, seeds {seeds}."
            )
            continue
        lines.append(
            f"Data and activation: by the full network alone, nearest to the paper's {paper} in the sum of log "
            f"distances: {found['points']} points of a class, {100 * found['noise']:g} % outliers, "
            f"{found['activation']}. Learning rates, there too: lowest mean final loss, more by factors of 3 while the "
            f"best was at an edge. {asked['epochs']:,} epochs, seeds {seeds}."
        )
    return lines


def _rows(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in settings["tried"]["data"]:
        for embedding, loss in entry["losses"].items():
            yield {
                "choice": "data",
                **_data(entry),
                "embedding": embedding,
                "method": "full",
                "loss": loss,
            }
    for reading, by_embedding in settings["tried"]["rates"].items():
        for embedding, by_method in by_embedding.items():
            for method, tried in by_method.items():
                rate = settings["rates"][reading][embedding][method]
                yield {
                    "choice": "learning rate",
                    **_data(settings),
                    "reading": READINGS[reading],
                    "embedding": embedding,
                    "method": method,
                    "loss": tried[f"{rate:g}"],
                    "rate": rate,
                    "tried": ", ".join(
                        f"{rate}: {'diverged' if loss is None else format(loss, '.3f')}" for rate, loss in tried.items()
                    ),
                }


def _data(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "points": setting["points"],
        "noise": 100 * setting["noise"],
        "activation": setting["activation"],
    }
