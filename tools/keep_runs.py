"""Keep what finished runs measured, without their tensors, for the results site and for
experiments.verify: a file an experiment in experiments/reporting/measured/.

python -m tools.keep_runs FOLDER...

A run that is kept already is replaced. The paths of this machine are left out: of the run's folder,
of its data, of its cache. A run that began with the prompts of another run is refused: nobody else
could make it again.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.command import command
from experiments.naming import job_name
from experiments.overrides import PATHS
from experiments.reporting.commands import overrides_of, single_command
from experiments.reporting.measured import MEASURED, compacted, name_of
from experiments.reporting.runs import Run, find_runs, read_run
from fedpgp.errors import FedPGPError

_TAG = re.compile(r"[\w-]+")
"""A tag of open_clip; another value of ``model.pretrained`` is a file."""


def kept(run: Run) -> dict:
    """A run's line: its name among those of its experiment, its configuration without paths and
    with the command of this run alone, its summary without what is null."""
    again = single_command(run.config)
    words = [word for word in overrides_of(again) or () if not word.startswith("experiment=")]
    config = {**without_paths(run.config), "command": again}
    return {"run": job_name(words), "config": config, "summary": compacted(run.summary)}


def without_paths(config: Mapping) -> dict:
    """A run's configuration, null where it has a path; a tag of weights stays."""
    clean = json.loads(json.dumps(config))
    for key in PATHS:
        *groups, name = key.split(".")
        inside = clean
        for group in groups:
            inside = inside.get(group, {})
        tag = key == "model.pretrained" and _TAG.fullmatch(str(inside.get(name)))
        if name in inside and not tag:
            inside[name] = None
    return clean


def keep(folders: Iterable[Path]) -> list[Path]:
    """Write the files of all finished runs at or below these folders; return them.

    Raises:
        FedPGPError: one of them began with the prompts of another run.
    """
    by_experiment: dict[str, dict[str, dict]] = {}
    for folder in find_runs(folders):
        run = read_run(folder)
        if run.status == "finished":
            if run.config.get("init_from"):
                raise FedPGPError(
                    f"{folder} began with the prompts of another run (init_from), which nobody "
                    "else has: it is not kept"
                )
            line = kept(run)
            by_experiment.setdefault(name_of(run), {})[line["run"]] = line
    written = []
    for name, lines in sorted(by_experiment.items()):
        path = MEASURED / f"{name}.jsonl"
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        old = {row["run"]: row for row in map(json.loads, before)}
        rows = sorted((old | lines).items())
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for _, row in rows)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for a run that cannot be kept."""
    for path in keep(map(Path, sys.argv[1:] if arguments is None else arguments)):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
