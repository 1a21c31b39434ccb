"""``tensorboard``: TensorBoard files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from experiments.callbacks.loggers.base import Logger, numbers, over_clients, register
from fedpgp.errors import FedPGPError


@register("tensorboard")
class TensorBoardLogger(Logger):
    """TensorBoard files in ``RUN_DIR/tensorboard``."""

    def __init__(self, folder: Path, config: Mapping, run: str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise FedPGPError(
                "logger=tensorboard needs the package tensorboard: pip install "
                "'fedpgp[tensorboard]'"
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
