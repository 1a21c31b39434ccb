"""Reading run folders: what one run measured, whether or not it finished."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from experiments.recorded_figures import check_summary, read_row, whole_number
from experiments.spreadsheet import text_of
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.evaluation.figures import ACCURACIES, CLIENT_FIGURES, LIFELONG, MODELS
from fedpgp.evaluation.lifelong import lifelong_summary

#: Any of these beside a config.yaml makes a folder a run folder (Hydra's own
#: .hydra/config.yaml has none).
_BESIDE_CONFIG = ("metrics.jsonl", "summary.json", "partition.json", "checkpoint")
_NEVER_INSIDE = {"private", "checkpoint", ".hydra", ".git", ".venv", "wandb"}


def number(value: Any) -> float:
    """`value` as a float; NaN for None, a missing figure or something that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


@dataclass(frozen=True)
class Run:
    """One run folder. `summary` is None while a run is under way, or when it was killed; `audit`
    is empty where the folder has no `audit.json`."""

    path: Path
    config: dict
    summary: dict | None
    trains: list[dict]
    evals: list[dict]
    audit: dict = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`finished`, `interrupted` (stopped by a person, or out of clients) or `unfinished`
        (running, or killed)."""
        return (self.summary or {}).get("status", "unfinished")

    @property
    def rounds(self) -> int:
        """The rounds asked for."""
        return int(
            self.config.get("rounds") or (self.summary or {}).get("rounds") or self.rounds_done
        )

    @property
    def rounds_done(self) -> int:
        return max((row["round"] for row in self.trains + self.evals), default=0)

    @property
    def seed(self) -> Any:
        return self.config.get("seed", (self.summary or {}).get("seed"))

    def choice(self, group: str) -> str:
        """Return the name chosen in a config group: `choice("method")` is `"fedpgp"`."""
        chosen = self.config.get(group, (self.summary or {}).get(group))
        return str(
            chosen.get("name", chosen.get("scheme", "?")) if isinstance(chosen, dict) else chosen
        )

    @property
    def accuracy(self) -> dict[str, dict | None]:
        """The blocks of `summary.json`, or of the last evaluation where there is no
        summary; a block may be None."""
        blocks = (
            self.summary["accuracy"] if self.summary else (self.evals[-1] if self.evals else {})
        )
        return {model: blocks.get(model) for model in MODELS}

    @property
    def one_prompt(self) -> bool:
        """Whether the method has one prompt for all. A run without a summary does not say: then,
        whether its global and its personal figures are the same."""
        if self.summary and "one_prompt" in self.summary:
            return self.summary["one_prompt"]
        shared, personal = self.accuracy["global"], self.accuracy["personal"]
        return bool(shared and personal) and all(
            shared.get(k) == personal.get(k) for k in ACCURACIES
        )

    def figure(self, model: str, name: str) -> float:
        """Return one figure of one model in percent: `local`, `worst10`, `std_clients.local`,
        `domains.noto`, `forgetting`; else NaN."""
        if name in LIFELONG:
            return block_figure(self.lifelong.get(model), name)
        return block_figure(self.accuracy[model], name)

    @property
    def lifelong(self) -> dict[str, dict | None]:
        """The block of `summary.json` of a run over several tasks, or what it would be of the
        evaluations so far; empty for another run."""
        if self.summary is None:
            return lifelong_summary(self.evals) or {}
        found = self.summary.get("lifelong")
        return found if isinstance(found, dict) else {}

    def matrix(self, model: str) -> list[list[float]]:
        """Return R[t, s], a row after each task; NaN where nothing was measured."""
        block = self.lifelong.get(model)
        rows = block.get("matrix") if isinstance(block, dict) else None
        rows = rows if isinstance(rows, list) else []
        return [[number(value) for value in row] for row in rows if isinstance(row, list)]

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks, in their order; empty where `partition.json` has none."""
        tasks = self.partition.get("tasks")
        tasks = tasks if isinstance(tasks, list) else []
        return [str(task.get("name")) for task in tasks if isinstance(task, dict)]

    def curve(self, model: str, name: str) -> list[tuple[int, float]]:
        """(round, figure) at each evaluation that has it."""
        points = [(row["round"], block_figure(row.get(model), name)) for row in self.evals]
        return [(x, y) for x, y in points if not math.isnan(y)]

    @property
    def capped(self) -> list[dict]:
        """`{round, client, images, weight}` of each client that says it has more
        images than it may weigh."""
        return [
            {"round": row["round"]} | entry
            for row in self.trains
            for entry in row.get("capped") or []
        ]

    @property
    def partial(self) -> dict[int, tuple[int, int]]:
        """Round -> (clients that answered, clients that were asked) of the evaluations that not
        all clients answered."""
        rows = [row for row in self.evals if isinstance(row.get("all_clients"), int)]
        asked = {row["round"]: row.get("drawn_clients", row["all_clients"]) for row in rows}
        return {
            row["round"]: (row["clients"], asked[row["round"]])
            for row in rows
            if row["clients"] < asked[row["round"]]
        }

    @property
    def reported_clients(self) -> tuple[int, int]:
        """Of how many clients the reported figures are, and how many there are; (0, 0) where
        the run does not say."""
        rounds = (self.summary or {}).get("selected_rounds") or [
            row["round"] for row in self.evals[-1:]
        ]
        of = [
            row
            for row in self.evals
            if row["round"] in rounds and isinstance(row.get("all_clients"), int)
        ]
        return min(((row["clients"], row["all_clients"]) for row in of), default=(0, 0))

    @property
    def evaluates_all(self) -> bool:
        """Whether an evaluation asks all clients, and does not draw some (``evaluate_clients``)."""
        drawn = any("drawn_clients" in row for row in self.evals)
        return self.config.get("evaluate_clients") is None and not drawn

    @property
    def dropped(self) -> list[dict]:
        """`{round, client, reason}` of each client left out of an average."""
        return [
            {"round": row["round"]} | entry
            for row in self.trains
            for entry in row.get("dropped") or []
        ]

    @cached_property
    def clients(self) -> list[dict]:
        """The rows of `clients.csv`, numbers as floats (NaN where empty); empty before
        the first evaluation."""
        path = self.path / "clients.csv"
        if not self._has(path):
            return []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                row["id"] = int(row["id"])
                row["domain"], row["name"] = (
                    text_of(row.get(key) or "") for key in ("domain", "name")
                )
                if row["model"] not in MODELS:
                    raise ValueError(f"unknown model {row['model']!r}")
                for key in ("train_images", "test_images", *CLIENT_FIGURES):
                    row[key] = float(row.get(key) or "nan")
        except OSError as error:
            raise _damaged(path, error.strerror) from error
        except (csv.Error, *MALFORMED) as error:
            raise _damaged(path, error) from error
        return rows

    @cached_property
    def partition(self) -> dict:
        """`partition.json`: `class_names` and `clients`, each with `train_counts` (not where the
        images are the clients' own); empty before it is written.
        """
        path = self.path / "partition.json"
        if not self._has(path):
            return {}
        table = _read_json(path)
        try:
            for row in table["clients"]:
                row["id"], row["train_images"]  # noqa: B018  (a missing key names the damage)
            list(table["class_names"])
        except (KeyError, TypeError) as error:
            raise _damaged(path, f"no {error}") from error
        return table

    @property
    def machines(self) -> dict[str, int]:
        """Machine -> clients it has trained, summed over rounds, from `machines.json`."""
        path = self.path / "machines.json"
        found = (_read_json(path).get("trained_on") or {}) if path.exists() else {}
        if not isinstance(found, dict):
            raise _damaged(path, "trained_on is no object")
        return found

    @cached_property
    def samples(self) -> list[dict]:
        """The images of `samples.json` with the personal prompt's answers; none in a deployment."""
        path = self.path / "samples.json"
        if not path.exists():
            return []
        samples = _read_json(path).get("samples")
        wanted = {"client", "domain", "label", "predicted", "correct", "confidence", "png"}
        if not isinstance(samples, list) or any(not wanted <= set(sample) for sample in samples):
            raise _damaged(path, f"each sample needs {', '.join(sorted(wanted))}")
        return samples

    def _has(self, path: Path) -> bool:
        """Return whether an optional file is there; a finished run has all of them."""
        if path.exists():
            return True
        if self.status == "finished":
            raise FedPGPError(
                f"{path} is missing, though the run finished: run it again, or restore the file"
            )
        return False


def block_figure(block: dict | None, name: str) -> float:
    """Return a figure of one accuracy block, by dotted name; a domain that has several figures
    gives its local one."""
    value: Any = block
    for part in name.split(".", 1):  # a domain's own name may hold a dot
        value = value.get(part) if isinstance(value, dict) else None
    return number(value.get("local") if isinstance(value, dict) else value)


def read_run(path: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises FedPGPError, naming the file, when config.yaml is missing or a file is damaged. The last
    line of metrics.jsonl may be torn (the run was killed while writing it): it is left out. Of a
    round that was run again after a resume the newest lines count.
    """
    path = Path(path)
    config_file = path / "config.yaml"
    if not config_file.is_file():
        raise FedPGPError(f"{path} is no run folder: it has no config.yaml")
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, *MALFORMED) as error:
        raise _damaged(config_file, " ".join(str(error).split())) from error
    if not isinstance(config, dict):
        raise _damaged(config_file, "it holds no settings")

    summary_file = path / "summary.json"
    summary = _read_json(summary_file) if summary_file.exists() else None
    if summary is not None and not isinstance(summary.get("accuracy"), dict):
        raise _damaged(summary_file, 'it has no "accuracy"')
    try:
        if summary is not None:
            check_summary(summary)
    except MALFORMED as error:
        raise _damaged(summary_file, error) from error
    trains, evals = _read_metrics(path / "metrics.jsonl")
    if not trains and not evals and summary and summary.get("status") == "finished":
        raise FedPGPError(f"{path / 'metrics.jsonl'} is missing or empty, though the run finished")
    audit_file = path / "audit.json"
    audit = _read_json(audit_file) if audit_file.exists() else {}
    return Run(path, config, summary, trains, evals, audit)


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """Return all run folders at or below the given ones, sorted, each once."""
    found = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FedPGPError(f"{folder} is no folder")
        for parent, below, files in os.walk(folder):
            if "config.yaml" in files and any(
                name in files or name in below for name in _BESIDE_CONFIG
            ):
                found.add(Path(parent).resolve())
            below[:] = [name for name in below if name not in _NEVER_INSIDE]
    return sorted(found)


def _read_metrics(path: Path) -> tuple[list[dict], list[dict]]:
    """metrics.jsonl as (train rows, eval rows), each sorted by round."""
    newest: dict[tuple[str, int], dict] = {}
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = read_row(line)
            newest[row["kind"], row["round"]] = row
        except MALFORMED as error:
            if index == len(lines) - 1:
                break
            raise _damaged(path, f"line {index + 1}: {error}") from error
    by_round = [newest[key] for key in sorted(newest, key=lambda key: key[1])]
    return [row for row in by_round if row["kind"] == "train"], [
        row for row in by_round if row["kind"] == "eval"
    ]


def _read_json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_int=whole_number)
    except MALFORMED as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    if not isinstance(data, dict):
        raise _damaged(path, "it holds no object")
    return data


def _damaged(path: Path, why: object) -> FedPGPError:
    return FedPGPError(f"{path} is damaged: {why}")
