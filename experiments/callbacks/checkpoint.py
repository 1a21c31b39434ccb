"""The run folder's part of a checkpoint: how much of metrics.jsonl counts."""

from experiments.callbacks.base import Callback
from experiments.run_folder import RunFolder


class CheckpointMark(Callback):
    """Marks the length of metrics.jsonl in each checkpoint, to cut it there when the run resumes.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def mark(self, unevaluated: bool = False) -> dict:
        return {"metrics_bytes": self._folder.metrics_length()}

    def roll_back(self, mark: dict, server_round: int) -> None:
        self._folder.roll_back(mark["metrics_bytes"], server_round)


def marked_length(info: dict | None) -> int:
    """Return the bytes of metrics.jsonl at a checkpoint; 0 where there is none.

    Args:
        info: of the checkpoint.
    """
    return info["observer"]["metrics_bytes"] if info else 0
