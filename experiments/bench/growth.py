"""How the cost of a step grows: with classes, context length, clients and rank, each alone
from one middle point."""

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.bench.measure import median_seconds, peak_memory
from experiments.bench.step import CONTEXT, RANK, STEP, setting
from fedpgp.errors import FedPGPError

MIDDLE = {"classes": 50, "n_ctx": CONTEXT, "clients": 1, "rank": RANK}
AXES = {
    "classes": (10, 30, 100, 300, 1000),
    "n_ctx": (4, 8, 16, 32),
    "clients": (1, 2, 5, 10),
    "rank": (1, 2, 4, 8, 16),
}


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """A row for each value on each axis."""
    for axis in arguments.axes or AXES:
        for value in AXES[axis]:
            point = {**MIDDLE, axis: value}
            point["rank"] = min(point["rank"], point["n_ctx"])  # there is none above
            method, params, batch, classes = setting(
                point["classes"],
                point["clients"],
                arguments,
                n_ctx=point["n_ctx"],
                rank=point["rank"],
            )

            def step(method=method, params=params, batch=batch, classes=classes):
                return method.gradients(params, batch, classes, STEP)

            yield {
                "bench": "growth",
                "axis": axis,
                **point,
                "tokens": classes.encoder(point["n_ctx"]).tokens,
                "ms": 1e3 * median_seconds(step, arguments.repeats),
                "peak_mb": peak_memory(step),
            }


def check_plot() -> None:
    """Refuse to plot where the package that draws is missing.

    Raises:
        FedPGPError: saying what to install.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise FedPGPError("--plot needs the package matplotlib: pip install 'fedpgp[plots]'")


def plot(found: Sequence[dict], path: Path) -> None:
    """One panel an axis: milliseconds of a step, both scales logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = list(dict.fromkeys(row["axis"] for row in found))
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    labels = {
        "classes": "classes",
        "n_ctx": "context tokens",
        "clients": "clients in one program",
        "rank": "rank",
    }
    for panel, axis in zip(panels, axes, strict=True):
        own = [row for row in found if row["axis"] == axis]
        panel.loglog([row[axis] for row in own], [row["ms"] for row in own], "o-")
        panel.set_xticks([row[axis] for row in own], [str(row[axis]) for row in own], minor=False)
        panel.minorticks_off()
        panel.set_xlabel(labels[axis])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds a step")
    figure.savefig(path, dpi=120)
