"""Work over several sessions: the time that was used, and checkpoints."""

import os
import time
from pathlib import Path

import torch


class Budget:
    """Seconds of work over all sessions. A step that took longer than ``LONGEST`` was paused;
    the pause is not work."""

    LONGEST = 20.0

    def __init__(self, used: float):
        self.used, self._last = used, time.monotonic()

    def tick(self) -> float:
        """Adds the time since the last call; returns the total."""
        now = time.monotonic()
        self.used += min(now - self._last, self.LONGEST)
        self._last = now
        return self.used


def save_atomic(state: dict, path: Path) -> None:
    """torch.save that never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
