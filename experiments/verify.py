"""Makes published runs again and says whether their figures hold.

python -m experiments.verify RUN_DIR                          a run folder, or all below a folder
python -m experiments.verify compare_all/fedpgp/base2novel/1  a cell of the published tables
python -m experiments.verify compare_all_vit --budget 20m     a table, as far as 20 minutes go
python -m experiments.verify --all --budget 20m               a random sample of all tables
python -m experiments.verify --submission RUN_DIR             a run folder of others, not run again

A figure is equal to the bit; inside: within rounding (--rounding, in points), or within the spread
of the other seeds of its cell; or outside. A run that cannot be made again here is not comparable.
Exit status: 0 inside, 1 outside, 2 not comparable or bad input.
"""

import argparse
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from experiments.command import BAD_INPUT, command
from experiments.latest_link import resolve_latest
from experiments.naming import unique_name
from experiments.overrides import user_path
from experiments.reporting.formatting import format_seconds
from experiments.reporting.measured import measured_runs, selected
from experiments.reporting.runs import Run, find_runs, number, read_run
from experiments.run_folder import RunFolder
from experiments.stopping import Stopped
from experiments.verification.checks import FAILED
from experiments.verification.comparison import (
    EQUAL,
    INSIDE,
    NOT_COMPARABLE,
    OUTSIDE,
    ROUNDING,
    Verdict,
)
from experiments.verification.rerun import verify, why_not_comparable
from experiments.verification.submission import check_submission, write_digests
from fedpgp.atomic_files import check_target
from fedpgp.errors import FedPGPError
from fedpgp.plain_text import one_line, written_out

_STATUS = {EQUAL: 0, INSIDE: 0, NOT_COMPARABLE: BAD_INPUT, OUTSIDE: 1}
_UNITS = {"s": 1, "m": 60, "h": 3600}
_UNKNOWN_SECONDS = 60.0


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for a figure that is outside, 2 for what is not
    comparable and for bad input."""
    options = _parser().parse_args(arguments)
    if options.json:
        check_target(options.json)
    if options.digests:
        print(f"wrote {written_out(write_digests(_folder(options.digests)))}")
        return 0
    if options.submission:
        return _submission(options)
    return _verify(options)


def _verify(options: argparse.Namespace) -> int:
    budget = seconds_of(options.budget) if options.budget else math.inf
    if options.all and (options.targets or not options.budget):
        raise FedPGPError("--all takes a sample of all tables: it needs --budget, and no names")
    targets = _all() if options.all else _targets(options.targets)
    if options.all:
        random.Random(options.sample).shuffle(targets)
    others = [*map(read_run, find_runs(options.seeds)), *measured_runs()]
    verdicts: list[Verdict] = []
    with _place(options.run_dir) as place:
        for run, name in within(targets, budget):
            folder = place / unique_name(name, r"[^\w=.,+-]+")
            try:
                found = verify(
                    run,
                    name,
                    folder,
                    others=others,
                    rounding=options.rounding,
                    inline=options.inline,
                )
            except Stopped as stopped:
                return stopped.code
            _print(found)
            verdicts.append(found)
    if not verdicts:
        raise FedPGPError(f"no run fits a budget of {options.budget}")
    counts = {status: sum(v.status == status for v in verdicts) for status in _STATUS}
    if len(targets) > 1:
        said = [f"{count} {status}" for status, count in counts.items() if count]
        print(f"{len(verdicts)} of {len(targets)} runs: {', '.join(said)}")
    if options.json:
        _write(options.json, [_record(found) for found in verdicts])
    return 1 if counts[OUTSIDE] else BAD_INPUT if counts[NOT_COMPARABLE] else 0


def within(targets: Sequence[tuple[Run, str]], budget: float) -> Iterator[tuple[Run, str]]:
    """Yield the runs that fit into so many seconds, by how long each took when it was recorded;
    the first that does not fit is passed over, not the end."""
    began = time.perf_counter()
    for run, name in targets:
        recorded = number(((run.summary or {}).get("seconds") or {}).get("total"))
        needs = _UNKNOWN_SECONDS if math.isnan(recorded) else recorded
        if time.perf_counter() - began + needs <= budget:
            yield run, name


def seconds_of(text: str) -> float:
    """Return ``20m``, ``90s``, ``1.5h`` or a number of seconds as seconds.

    Raises:
        FedPGPError: it is none of them.
    """
    digits, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        seconds = float(digits) * _UNITS[unit]
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise FedPGPError(f"--budget {text}: write 90s, 20m or 1h")
    return seconds


def _all() -> list[tuple[Run, str]]:
    """Return all kept runs that can be made again."""
    return [(run, str(run.path)) for run in measured_runs() if not why_not_comparable(run)]


def _targets(words: Sequence[str]) -> list[tuple[Run, str]]:
    """Return the runs that the command line names: folders that exist, else cells."""
    found: dict[Path, tuple[Run, str]] = {}
    for word in words:
        path = resolve_latest(user_path(word))
        if path.is_dir():
            folders = find_runs([path])
            if not folders:
                raise FedPGPError(f"{path} holds no run folder")
            runs = [(read_run(folder), str(folder)) for folder in folders]
        else:
            runs = [(run, str(run.path)) for run in selected(word)]
        found |= {run.path: (run, name) for run, name in runs}
    if not found:
        raise FedPGPError("name a run folder, a cell or a table; or --all --budget 20m")
    return list(found.values())


@contextmanager
def _place(run_dir: Path | None) -> Iterator[Path]:
    """Give the folder of the new runs: one that goes at the end, or the one that was asked for,
    which stays."""
    if run_dir is None:
        with tempfile.TemporaryDirectory(prefix="verify-") as folder:
            yield Path(folder)
        return
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise FedPGPError(f"{run_dir} exists already; choose another --run-dir")
    yield run_dir


def _submission(options: argparse.Namespace) -> int:
    folder = _folder(options.submission)
    checks = check_submission(folder, options.rounding)
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        table.add_row(check.name, check.status, escape(one_line(check.said)))
    RichConsole(highlight=False).print(table)
    failed = sum(check.status == FAILED for check in checks)
    name = written_out(folder)
    print(f"{name}: {failed} of {len(checks)} checks failed" if failed else f"{name}: accepted")
    if options.json:
        _write(options.json, [asdict(check) for check in checks])
    return 1 if failed else 0


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FedPGPError(f"{path} is no folder")
    return path


def _print(found: Verdict) -> None:
    console = RichConsole(highlight=False, markup=False)
    took = f" ({format_seconds(found.seconds)})" if found.seconds else ""
    name, reason = written_out(found.name), one_line(found.reason)
    console.print(f"{name}: {found.status}, {reason}{took}", soft_wrap=True)
    said = [(*entry, "by its command") for entry in found.settings]
    said += [(*entry, "here") for entry in found.environment if found.status != EQUAL]
    for what, recorded, other, where in said:
        line = one_line(f"{what}: {recorded} there, {other} {where}")
        console.print(f"  {line}", soft_wrap=True)
    if found.status != OUTSIDE or not found.figures:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("figure")
    for name in ("recorded", "again", "difference", "allowed"):
        table.add_column(name, justify="right")
    for figure in found.figures:
        if not figure.inside:
            values = (figure.recorded, figure.again, figure.difference, figure.allowed)
            table.add_row(one_line(figure.name), *map(figure.text, values))
    console.print(table)


def _record(found: Verdict) -> dict:
    """Return a verdict as JSON has it."""
    figures = [asdict(figure) | {"inside": figure.inside} for figure in found.figures]
    numbers = dict(zip(("compared", "equal"), found.details, strict=True))
    return _plain({**asdict(found), "figures": figures, "details": numbers})


def _plain(value: object) -> object:
    """Return a value with null for each number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, value: object) -> None:
    RunFolder(path.parent).json(path.name, value)
    print(f"wrote {written_out(path)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="CELL|RUN_DIR|TABLE",
        help="EXPERIMENT/METHOD/PROTOCOL/SEED, a folder, or an experiment",
    )
    parser.add_argument("--all", action="store_true", help="a random sample of all kept runs")
    parser.add_argument("--budget", metavar="TIME", help="of all runs together: 90s, 20m, 1h")
    parser.add_argument("--sample", type=int, default=None, help="seed of the sample of --all")
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=[],
        type=user_path,
        metavar="RUN_DIR",
        help="runs of other seeds, whose spread counts",
    )
    parser.add_argument(
        "--rounding",
        type=float,
        default=ROUNDING,
        metavar="POINTS",
        help=f"by which another processor may differ (default: {ROUNDING})",
    )
    parser.add_argument(
        "--inline", action="store_true", help="run in this process, whatever the run's runtime"
    )
    parser.add_argument("--run-dir", type=user_path, metavar="DIR", help="keep the new runs there")
    parser.add_argument(
        "--submission", type=user_path, metavar="RUN_DIR", help="check a run folder of others"
    )
    parser.add_argument(
        "--digests", type=user_path, metavar="RUN_DIR", help="write its digests.json, to submit it"
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the verdicts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
