"""Loggers beside the run folder. Each gets the same names: ``train/loss``, ``eval/personal/local``
…, the round as step; at the end ``clients/personal/local`` … (a histogram over clients), the
configuration and the run's page.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from experiments.callbacks.base import Callback
from fedpgp.errors import FedPGPError, unknown
from fedpgp.evaluation.figures import ACCURACIES


class Logger(Callback):
    """Takes numbers as they come. This one keeps none: the run folder is enough."""

    def trained(self, record: dict) -> None:
        self.log(record)

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        self.log(record)

    def log(self, record: Mapping) -> None:
        """Take the numbers of an object of ``metrics.jsonl``."""

    def close(self, summary: Mapping | None) -> None:
        """End the log; ``summary`` is None where the run has none."""


class WandbLogger(Logger):
    """Weights & Biases; ``WANDB_MODE=offline`` needs no network. A resumed run keeps the same
    id."""

    def __init__(self, folder: Path, config: Mapping, run: str):
        try:
            import wandb
        except ImportError:
            raise FedPGPError("logger=wandb needs the package wandb: pip install wandb") from None
        self.folder = folder
        settings = wandb.Settings(silent=not config["verbose"])
        project = config["logger"].get("project", "fedpgp")
        try:
            self.run = wandb.init(
                project=project,
                dir=str(folder),
                config=dict(config),
                id=run,
                name=folder.name,
                resume="allow",
                settings=settings,
            )
        except wandb.Error as error:
            raise FedPGPError(
                f"logger=wandb: {error}; WANDB_MODE=offline needs no network and no account"
            ) from error

    def log(self, record: Mapping) -> None:
        self.run.log(numbers(record), step=record["round"])

    def close(self, summary: Mapping | None) -> None:
        import wandb

        if summary:
            self.run.summary.update(numbers({"kind": "summary", **summary}))
            page = self.folder / "report.html"
            figures = {
                name: wandb.Histogram(values) for name, values in over_clients(self.folder).items()
            }
            self.run.log(
                {**figures, **({"report": wandb.Html(str(page))} if page.exists() else {})}
            )
        self.run.finish()


class TensorBoardLogger(Logger):
    """TensorBoard files in ``RUN_DIR/tensorboard``."""

    def __init__(self, folder: Path, config: Mapping):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise FedPGPError(
                "logger=tensorboard needs the package tensorboard: pip install tensorboard"
            ) from None
        self.folder = folder
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text(
            "config", f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```"
        )

    def log(self, record: Mapping) -> None:
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, record["round"])

    def close(self, summary: Mapping | None) -> None:
        if summary:
            for name, values in over_clients(self.folder).items():
                self.writer.add_histogram(name, np.array(values), summary["rounds"])
        self.writer.close()


def make_logger(folder: Path, config: Mapping, run: str) -> Logger:
    """The logger of a configuration.

    Raises:
        FedPGPError: unknown name, or its package is not there.
    """
    name = config["logger"]["name"]
    if name == "none":
        return Logger()
    if name == "wandb":
        return WandbLogger(folder, config, run)
    if name == "tensorboard":
        return TensorBoardLogger(folder, config)
    raise FedPGPError(unknown("logger", name, ["none", "wandb", "tensorboard"]))


def over_clients(folder: Path) -> dict[str, list[float]]:
    """The figures of clients.csv, a value a client: ``clients/<model>/<figure>``."""
    found: dict[str, list[float]] = {}
    path = folder / "clients.csv"
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for figure in ACCURACIES:
                    if row[figure]:
                        found.setdefault(f"clients/{row['model']}/{figure}", []).append(
                            float(row[figure])
                        )
    return found


def numbers(record: Mapping) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl (or of a summary) by name:
    ``<kind>/<key>/<inner key>``."""
    found: dict[str, float] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{name}/{key}")
        elif isinstance(value, list):
            found[name] = float(len(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = float(value)

    for key, value in record.items():
        if key not in ("kind", "round"):
            walk(value, f"{record['kind']}/{key}")
    return found
