"""``none``: the run folder is enough."""

from collections.abc import Mapping
from pathlib import Path

from experiments.callbacks.loggers.base import Logger, register


@register("none")
class NoLogger(Logger):
    """Keeps no numbers."""

    def __init__(self, folder: Path, config: Mapping, run: str):
        """Take nothing."""
