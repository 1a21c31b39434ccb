"""Writes what happens into the run's folder."""

from collections.abc import Mapping

from experiments.callbacks.base import Callback
from experiments.run_folder import RunFolder
from fedpgp.protocols import LifelongTask


class RunFolderCallback(Callback):
    """Writes partition.json, metrics.jsonl, clients.csv, samples.json and errors.log.

    Args:
        folder: of the run.
        scheme: the configuration's ``partition``.

    Attributes:
        class_names, notes: of the data set; set them before the server begins.
        tasks: that come one after the other; likewise.
        last_traceback: the newest in errors.log.
    """

    def __init__(self, folder: RunFolder, scheme: Mapping):
        self._folder, self._scheme = folder, scheme
        self.class_names: list[str] = []
        self.notes: tuple[str, ...] = ()
        self.tasks: tuple[LifelongTask, ...] = ()
        self.last_traceback = ""

    def traceback(self, text: str) -> None:
        self._folder.traceback(text)
        self.last_traceback = text

    def clients(self, table: list[dict]) -> None:
        self._folder.clients(table, self._scheme, self.class_names, self.notes, self.tasks)

    def trained(self, record: dict) -> None:
        self._folder.metric(record)

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        self._folder.metric(record)
        self._folder.client_accuracy(rows)

    def samples(self, samples: list[dict]) -> None:
        self._folder.json("samples.json", {"samples": samples})
