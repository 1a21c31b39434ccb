"""A run's folder: made once, owned by one process, written as the run goes."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from experiments.latest_link import resolve_latest
from experiments.overrides import typed
from experiments.provenance import PROVENANCE, provenance
from experiments.recorded_figures import check_summary, read_row, whole_number
from experiments.spreadsheet import csv_text
from fedpgp.atomic_files import cannot_write, remove_leftovers, write_atomically
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.evaluation import client_figures
from fedpgp.evaluation.figures import CLIENT_FIGURES, MODELS
from fedpgp.locks import file_lock
from fedpgp.plain_text import written_out
from fedpgp.protocols import LifelongTask
from strategies.checkpoint import remove_after

EXTENDED = "extended"
"""Key of config.yaml: the numbers of rounds that the run was given before the one it has now."""
MEMBERS = "members"
"""Key of config.yaml: who took part until which round, before others joined or left."""
ABOUT = (*PROVENANCE, "command", EXTENDED, MEMBERS)
"""Keys of config.yaml that are no settings."""

LISTED = 4
"""Runs of a sweep that a message names."""
PARTS = ("method", "dataset", "model", "partition", "protocol", "strategy", "runtime", "training")
"""Parts of a configuration that hold settings of their own."""
NAMED = ("method", "dataset", "model", "protocol", "strategy", "runtime")
"""Parts that have a name."""
LATER = ("privacy", "attack", "logger")
"""Parts that have a name where they are there: a run that is older than them has none."""
GLANCE = 1.0
"""Seconds for which another start may hold a folder just to see that it is used."""


class RunFolder:
    """The files of one run (design: "A run's folder").

    Args:
        path: the folder.

    Attributes:
        command: that started the run.
    """

    def __init__(self, path: Path):
        self.path, self.command = path, ""
        self._back: tuple[int, int] | None = None
        self.table: list[dict] = []
        self.evaluations: list[dict] = []
        self.trained: list[dict] = []

    # Opening. -------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config: Mapping, command: str) -> "RunFolder":
        """Return a new folder with its config.yaml.

        Raises:
            FedPGPError: it exists already and is not empty, or cannot be made; another
                process is just making it.
        """
        about = {**provenance(), "command": command}
        text = yaml.safe_dump({**config, **about}, sort_keys=False, allow_unicode=True)
        folder = cls(path)
        folder.command = command
        folder.refuse_if_used()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        with folder.locked():  # of two processes that came at once, one gets it
            folder.refuse_if_used()
            write_atomically(path / "config.yaml", text.encode())
        return folder

    def refuse_if_used(self) -> None:
        """Raise FedPGPError where the folder holds anything."""
        path = self.path
        if path.exists() and (
            not path.is_dir() or any(inside.name != ".lock" for inside in path.iterdir())
        ):
            raise FedPGPError(
                f"{path} exists already; resume it by {typed('resume', path)}, or choose another "
                "run_dir"
            )

    @classmethod
    def open(cls, path: Path) -> tuple["RunFolder", dict]:
        """Return a folder that exists, and the configuration it was started with.

        Raises:
            FedPGPError: it is no run's folder.
        """
        try:
            config = yaml.safe_load((path / "config.yaml").read_text())
        except FileNotFoundError:
            hint = (
                f"; it is a sweep's: -m {typed('resume', path)}"
                if (path / "sweep.json").is_file()
                else ""
            )
            raise FedPGPError(f"{path} is no run's folder: it has no config.yaml{hint}") from None
        except (OSError, yaml.YAMLError, *MALFORMED) as error:
            raise FedPGPError(
                f"{path / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}"
            ) from error
        check_whole(path / "config.yaml", config)
        folder = cls(path)
        folder.command = str(config.get("command") or "")
        return folder, {key: value for key, value in config.items() if key not in ABOUT}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. The system lets go when the process ends, however it
        ends.

        Raises:
            FedPGPError: another process holds it.
        """
        busy = f"another process is at work in {self.path}; wait for it, or choose another run_dir"
        with file_lock(self.path / ".lock", wait=GLANCE, busy=busy):
            yield

    # Writing. -------------------------------------------------------------------------------------

    def clients(
        self,
        table: Sequence[dict],
        scheme: Mapping,
        class_names: Sequence[str],
        notes: Sequence[str] = (),
        tasks: Sequence[LifelongTask] = (),
    ) -> None:
        """partition.json: who got how many images of which class, what is to be said of the data,
        and which tasks come one after the other."""
        self.table = list(table)
        names = list(
            dict.fromkeys(class_names)
        )  # data sets that are joined may have a class of the same name
        about = {**scheme, "class_names": names, "notes": list(notes)}
        if tasks:
            about["tasks"] = [
                {
                    "name": task.name,
                    "classes": [class_names[label] for label in task.classes],
                    "last_round": task.last_round,
                }
                for task in tasks
            ]
        head = json.dumps(about, indent=1).removesuffix("\n}")
        # A client a line: indented further, 100,000 clients take five times as long and as much.
        clients = ",\n  ".join(map(json.dumps, self.table))
        text = f'{head},\n "clients": [\n  {clients}\n ]\n}}\n'
        write_atomically(self.path / "partition.json", text.encode())

    def metric(self, record: dict) -> None:
        """Append a line to metrics.jsonl."""
        if self._back is not None:
            (length, server_round), self._back = self._back, None
            remove_after(self.path / "checkpoint", server_round)
            self.cut_metrics(length)
        (self.evaluations if record["kind"] == "eval" else self.trained).append(record)
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error

    def traceback(self, text: str) -> None:
        """Append an exception of a method's code to errors.log."""
        path = self.path / "errors.log"
        try:
            with open(path, "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    def metrics_length(self) -> int:
        """Return the bytes of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def cut_metrics(self, length: int) -> None:
        """Drops what a killed attempt wrote after its last checkpoint, and reads what stays."""
        path = self.path / "metrics.jsonl"
        for folder in (self.path, self.path / "checkpoint"):
            remove_leftovers(folder)
        try:
            path.touch()
            if path.stat().st_size < length:
                raise FedPGPError(
                    f"{path} is shorter than the checkpoint says: it was cut; restore it, or "
                    "start a new run"
                )
            os.truncate(path, length)
            records = [read_row(line) for line in path.read_text().splitlines()]
            self.evaluations = [record for record in records if record["kind"] == "eval"]
            self.trained = [record for record in records if record["kind"] == "train"]
        except OSError as error:
            raise cannot_write(path, error) from error
        except MALFORMED as error:
            raise FedPGPError(
                f"{path} is damaged ({error}); restore it, or start a new run"
            ) from error

    def roll_back(self, length: int, server_round: int) -> None:
        """Drops the rounds after this one, with the next line that is written: where none follows
        (the disk is full), what was saved stays, and can be resumed.

        Args:
            length: of metrics.jsonl after that round.
            server_round: the last that counts.
        """
        self._back = length, server_round

    def refuse_lost_rounds(self) -> None:
        """Raise FedPGPError where rounds were trained and no checkpoint is left: to begin
        anew would drop them."""
        path = self.path / "metrics.jsonl"
        if path.is_file() and '"kind": "train"' in path.read_text(errors="replace"):
            raise FedPGPError(
                f"{path} has rounds of training, but there is no checkpoint in "
                f"{self.path / 'checkpoint'}: restore it, or start a new run"
            )

    def client_accuracy(self, rows: Sequence[Mapping]) -> None:
        """clients.csv: the last evaluation, a row a client and model; with the clients' names where
        their nodes told them."""
        named = ["name"] if any(client.get("name") for client in self.table) else []
        lines: list[list] = [
            ["id", "domain", "train_images", "test_images", "model", *CLIENT_FIGURES, *named]
        ]
        for row in rows:
            own = self.table[row["id"]]
            for model in MODELS:
                values = client_figures(row, model)
                if any(value is not None for value in values.values()):
                    about = [
                        row["id"],
                        row["domain"] or "",
                        own["train_images"],
                        own["test_images"],
                        model,
                    ]
                    shown = [
                        "" if values[name] is None else values[name] for name in CLIENT_FIGURES
                    ]
                    lines.append([*about, *shown, *(own.get("name", "") for _ in named)])
        write_atomically(self.path / "clients.csv", csv_text(lines).encode())

    def summary(self) -> dict:
        """summary.json; empty when there is none, or a part of one."""
        try:
            text = (self.path / "summary.json").read_text()
            summary = json.loads(text, parse_int=whole_number)
            check_summary(summary)
        except (OSError, *MALFORMED):
            return {}
        return summary

    def json(self, name: str, value: object) -> None:
        """Write a JSON file."""
        write_atomically(self.path / name, (json.dumps(value, indent=1) + "\n").encode())


def asked_run(path: Path) -> Path:
    """Return the folder that ``--run`` means: a run's own, or the newest run's below it, which is
    said on standard error.

    Raises:
        FedPGPError: a sweep's folder: its runs differ, and one of them has to be named.
    """
    path = resolve_latest(path)
    if not path.is_dir() or (path / "config.yaml").exists():
        return path
    found: dict[Path, tuple[float, Path]] = {}
    for depth in ("*", "*/*", "*/*/*"):
        for config in path.glob(f"{depth}/config.yaml"):
            found.setdefault(config.resolve(), (config.stat().st_mtime, config.parent))
    if not found:
        return path
    if (path / "sweep.json").is_file():
        names = sorted(folder.name for _, folder in found.values())
        listed = ", ".join(names[:LISTED]) + (
            f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        )
        raise FedPGPError(f"{path} is a sweep's folder; name one of its runs: {listed}")
    _, newest = max(found.values())
    shown = written_out(path), written_out(newest)
    print("note: --run {}: the newest run below it, {}".format(*shown), file=sys.stderr)
    return newest


def check_whole(file: Path, config: object) -> None:
    """Refuse what is no configuration of a run.

    Args:
        file: where it stands.
        config: what was read there.

    Raises:
        FedPGPError: naming a part that is missing.
    """
    if not isinstance(config, dict) or "method" not in config:
        raise FedPGPError(f"{file} is not the configuration of a run")
    there = [name for name in LATER if name in config]
    lacking = [name for name in (*PARTS, *there) if not isinstance(config.get(name), dict)]
    lacking += [
        name for name in ("rounds", "clients", "seed") if not isinstance(config.get(name), int)
    ]
    lacking += [
        f"{name}.name"
        for name in (*NAMED, *there)
        if name not in lacking and "name" not in config[name]
    ]
    if lacking:
        raise FedPGPError(
            f"{file} is not the configuration of a run: it lacks {', '.join(lacking)}"
        )


def default_folder(name: str) -> Path:
    """outputs/<name>/<time>, not yet there."""
    folder = Path("outputs") / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    return next(
        p
        for p in (folder, *(folder.with_name(f"{folder.name}-{i}") for i in range(2, 10_000)))
        if not p.exists()
    )


def sweep_folder(run_dir: str | None, resume: str | None, name: str) -> str:
    """Return where a sweep's runs go: ``run_dir`` or ``resume`` when given, else a new
    outputs/<name>/<time>."""
    return str(resume or run_dir or default_folder(name))
