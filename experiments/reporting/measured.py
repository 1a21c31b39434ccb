"""The runs whose figures the project publishes: what they measured, without their tensors.

They stand in ``measured/NAME.jsonl``, by the name of their experiment, a JSON object a line:
``run`` (its name), ``config`` (as config.yaml has it) and ``summary`` (as summary.json; what is
null there is left out). ``python -m tools.keep_runs FOLDER...`` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.recorded_figures import check_summary, whole_number
from experiments.reporting.runs import Run
from experiments.settings import flatten
from fedpgp.errors import MALFORMED, FedPGPError

MEASURED = Path(__file__).parent / "measured"
"""The folder of these runs, a file an experiment."""
_CHOICES = ("method", "protocol", "dataset", "model", "partition", "strategy", "attack", "privacy")


@lru_cache(maxsize=1)
def measured_runs() -> tuple[Run, ...]:
    """Return all runs that are kept; their ``path`` is ``EXPERIMENT/NAME`` and no folder.

    Raises:
        FedPGPError: a damaged file.
    """
    return tuple(run for path in sorted(MEASURED.glob("*.jsonl")) for run in _read(path))


def selected(cell: str) -> list[Run]:
    """Return the kept runs that a name means.

    Args:
        cell: words between ``/``, all of which have to be a run's: its experiment, the choice of
            a group (a method, a protocol, a data set …), its seed, or ``key=value``.

    Raises:
        FedPGPError: no run has all of them.

    Example:
        ``compare_all/fedpgp/base2novel/1``, ``compare_all_vit``, ``privacy/privacy.epsilon=8``
    """
    words = [word for word in cell.split("/") if word]
    found = [run for run in measured_runs() if words and all(_is(run, word) for word in words)]
    if found:
        return found
    unknown = [word for word in words if not any(_is(run, word) for run in measured_runs())]
    which = f"no run that is kept has {', '.join(unknown)}" if unknown else "no run has all of them"
    tables = ", ".join(sorted({name_of(run) for run in measured_runs()}))
    raise FedPGPError(
        f"{cell!r} is no folder and no cell: {which}. A cell is EXPERIMENT/METHOD/PROTOCOL/SEED, "
        f"KEY=VALUE for other settings; tables are {tables or 'none'}"
    )


def name_of(run: Run) -> str:
    """Return the name of a run's experiment."""
    return str(run.config.get("experiment_name", "default"))


def compacted(value: Any) -> Any:
    """Return a block of a summary without what is null."""
    if isinstance(value, Mapping):
        return {key: compacted(entry) for key, entry in value.items() if entry is not None}
    return value


def _is(run: Run, word: str) -> bool:
    key, equals, value = word.partition("=")
    if equals:
        own = run.choice(key) if key in _CHOICES else flatten(run.config).get(key)
        return own is not None and str(own) == value
    names = [name_of(run), *(run.choice(group) for group in _CHOICES)]
    return word in names or word == str(run.seed)


def _read(path: Path) -> list[Run]:
    runs = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line, parse_int=whole_number)
            check_summary(row["summary"])
            place = Path(path.stem) / str(row["run"])
            runs.append(Run(place, row["config"], row["summary"], [], []))
    except MALFORMED as error:
        raise FedPGPError(f"{path} is damaged: {error!r}") from error
    return runs
