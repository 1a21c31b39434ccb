"""What Prometheus is told of a run's folder and of a node's state-dir."""

import json
import re
import shutil
import threading
from pathlib import Path

from clients.node_config import ERRORS
from experiments.monitoring.exposition import Metric
from fedpgp.errors import MALFORMED
from fedpgp.evaluation.figures import MODELS

_ROUND = re.compile(r"round_(\d+)\.safetensors")
_RUN = re.compile(r"[0-9a-f]{8,64}")


class RunMetrics:
    """Of a run: its newest round and evaluation, and what all rounds came to.

    Reads what is new in metrics.jsonl each time.

    Args:
        folder: of the run.
        rounds: that it is to have.
    """

    def __init__(self, folder: Path, rounds: int | None = None):
        self._path, self._rounds = folder / "metrics.jsonl", rounds
        self._lock = threading.Lock()  # two may ask at once
        self._start()

    def _start(self) -> None:
        self._read_to, self._last, self._trained, self._evaluated = 0, b"", {}, {}
        self._totals = {"up": 0, "down": 0, "dropped": 0}

    def __call__(self) -> list[Metric]:
        with self._lock:
            self._read()
            return self._metrics()

    def _metrics(self) -> list[Metric]:
        one = self._trained
        metrics = [
            Metric("fedpgp_rounds", "Rounds that the run is to have.").add(self._rounds),
            Metric("fedpgp_round", "The newest round.").add(one.get("round")),
            Metric("fedpgp_round_loss", "Mean training loss of the newest round.").add(
                one.get("loss")
            ),
            Metric("fedpgp_round_seconds", "Seconds of the newest round.").add(one.get("seconds")),
            Metric("fedpgp_round_clients", "Clients whose updates the newest round has.").add(
                _count(one.get("clients"))
            ),
            Metric("fedpgp_dropped_total", "Clients that were left out of a round.", "counter").add(
                self._totals["dropped"]
            ),
            Metric("fedpgp_payload_bytes_total", "Payload of all rounds.", "counter")
            .add(self._totals["up"], direction="up")
            .add(self._totals["down"], direction="down"),
        ]
        figures = Metric("fedpgp_figure", "Figures of the newest evaluation, in percent.")
        for model in MODELS:
            for name, value in (self._evaluated.get(model) or {}).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    figures.add(value, model=model, figure=name)
        newest = Metric("fedpgp_last_change_timestamp_seconds", "When the run last told a figure.")
        return [*metrics, figures, newest.add(_changed(self._path)), _free(self._path.parent)]

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_to - len(self._last))
                if file.read(len(self._last)) != self._last:  # rolled back, and perhaps grown again
                    self._start()
                    file.seek(0)
                content = file.read()
        except OSError:
            return
        whole = content.rpartition(b"\n")[0]
        if not whole:
            return
        self._read_to += len(whole) + 1
        lines = whole.splitlines()
        self._last = lines[-1] + b"\n"
        for line in lines:
            try:
                self._take(json.loads(line))
            except MALFORMED:
                continue

    def _take(self, record: dict) -> None:
        if record["kind"] == "eval":
            self._evaluated = record
        else:
            self._trained = record
        self._totals["up"] += record.get("bytes_up") or 0
        self._totals["down"] += record.get("bytes_down") or 0
        self._totals["dropped"] += len(record.get("dropped") or ())


class NodeMetrics:
    """Of a node: the newest round of each run that it has private tensors of, and its errors.

    Args:
        folder: its state-dir.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self) -> list[Metric]:
        newest = Metric("fedpgp_node_round", "The newest round with private tensors here.")
        when = Metric("fedpgp_node_last_change_timestamp_seconds", "When it was trained.")
        for run in sorted(_folders(self._folder)):
            if not _RUN.fullmatch(run.name):
                continue
            files = [
                (int(found[1]), file)
                for client in _folders(run)
                for file in client.glob("round_*.safetensors")
                if (found := _ROUND.fullmatch(file.name))
            ]
            if files:
                number, file = max(files)
                newest.add(number, run=run.name)
                when.add(_changed(file), run=run.name)
        errors = self._folder / ERRORS
        size = errors.stat().st_size if errors.is_file() else 0
        return [
            newest,
            when,
            Metric("fedpgp_node_errors_bytes", f"Size of {ERRORS}.").add(size),
            Metric("fedpgp_node_last_error_timestamp_seconds", f"When {ERRORS} grew.").add(
                _changed(errors)
            ),
            _free(self._folder),
        ]


def _free(folder: Path) -> Metric:
    metric = Metric("fedpgp_disk_free_bytes", "Free on the disk of the folder.")
    try:
        return metric.add(shutil.disk_usage(folder).free)
    except OSError:
        return metric


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _count(clients: object) -> int | None:
    """Return how many clients a round has: its record lists or counts them."""
    if isinstance(clients, int):
        return clients
    return len(clients) if isinstance(clients, list | tuple) else None
