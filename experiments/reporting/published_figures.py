"""Published figures beside ours. They stand in ``published/NAME.csv``, by the name of the
experiment that makes ours.

A row is one figure: ``source`` (who reports it), ``figure`` (as in summary.json), ``prompt``
(zero_shot, global or personal), ``value`` in percent, ``mean_of`` (data sets it is the mean of,
when of several) and ``note``. Every other column is a setting that a run must have to be
compared with it; empty is any.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from experiments.reporting.formatting import format_mean_and_std
from experiments.reporting.grids import Grid
from experiments.reporting.runs import Run
from experiments.reporting.statistics import mean_std
from experiments.reporting.tables import column_name
from experiments.reporting.titles import title
from experiments.settings import flatten
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.figures import MODELS

_KNOWN = ("source", "figure", "prompt", "value", "mean_of", "note")
NOT_RUN = "not run"
PUBLISHED = Path(__file__).parent / "published"
"""The folder of these figures, a file an experiment."""


@dataclass(frozen=True)
class Published:
    """One published figure; `where` holds the settings that a run must have."""

    source: str
    figure: str
    prompt: str
    value: float
    mean_of: tuple[str, ...]
    where: dict[str, str]
    note: str

    def ours(self, runs: Sequence[Run]) -> tuple[float, float]:
        """Return the mean and standard deviation over seeds of the runs that it can be compared
        with; NaN where there are none.

        A seed counts when all the data sets of `mean_of` were run; parts of a protocol
        (domains held out) are averaged.
        """
        seeds: dict[object, dict[str, list[float]]] = {}
        for run in runs:
            if all(_setting(run, key) == value for key, value in self.where.items() if value):
                by_dataset = seeds.setdefault(run.seed, {})
                by_dataset.setdefault(run.choice("dataset"), []).append(
                    run.figure(self.prompt, self.figure)
                )
        values = [
            fmean(
                fmean(found)
                for name, found in by_dataset.items()
                if not self.mean_of or name in self.mean_of
            )
            for by_dataset in seeds.values()
            if set(self.mean_of) <= set(by_dataset)
        ]
        return mean_std(values)


def published(name: str) -> list[Published]:
    """Return the published figures of an experiment; none where there is no file of its name.

    Raises:
        FedPGPError: a damaged file.
    """
    path = PUBLISHED / f"{name}.csv"
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Published(
                    row["source"],
                    row["figure"],
                    row["prompt"],
                    float(row["value"]),
                    tuple(row["mean_of"].split()),
                    {key: value for key, value in row.items() if key not in _KNOWN},
                    row["note"],
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FedPGPError(f"{path} is damaged: {error!r}") from error


def published_grid(name: str, runs: Sequence[Run]) -> Grid | None:
    """Ours and theirs side by side with the difference, "not run" where it was not; None
    without published figures."""
    rows = published(name)
    if not rows:
        return None
    mine = [run for run in runs if run.config.get("experiment_name") == name]
    keys = [
        key
        for key in rows[0].where
        if any(row.where[key] or (key == "dataset" and row.mean_of) for row in rows)
    ]
    body = []
    for row in rows:
        mean, std = row.ours(mine)
        ours = NOT_RUN if math.isnan(mean) else format_mean_and_std(mean, std)
        difference = "–" if math.isnan(mean) else f"{mean - row.value:+.2f}"
        several = f"mean of {len(row.mean_of)}" if row.mean_of else "any"
        settings = [
            (title(row.where[key]) if key == "method" else row.where[key])
            or (several if key == "dataset" else "any")
            for key in keys
        ]
        words = [row.source, *settings, MODELS[row.prompt], column_name(row.figure)]
        body.append(
            [(text, "") for text in (*words, ours, f"{row.value:.2f}", difference, row.note)]
        )
    header = ["published by", *keys, "prompt", "figure", "ours", "theirs", "difference", "note"]
    return Grid(header, body, len(keys) + 3)


def _setting(run: Run, key: str) -> str:
    flat = flatten(run.config)
    if key in ("dataset", "method", "model", "protocol", "partition"):
        return run.choice(key)
    return str(flat.get(key))
