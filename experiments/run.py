"""One experiment, or a sweep:
``python -m experiments.run [group=choice ...] [key=value ...]``; ``--help`` explains."""

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.command import command, complain
from experiments.help import explain, explain_top, settings_as_flags
from experiments.hydra_options import split_options
from experiments.latest_link import link_latest
from experiments.naming import job_name, older_job_name
from experiments.override_checks import check_overrides, in_each_job
from experiments.overrides import RUN, readable, typed
from experiments.resume_rules import changed_on_resume, may_change_on_resume
from experiments.settings import CONF, flatten, parse, register_resolvers, resolved, swept_by
from experiments.sweep import Sweep, jobs, show_table
from fedpgp.atomic_files import write_atomically
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.plain_text import written_out

UNFORESEEN = 1
INTERRUPTED = 128 + signal.SIGINT
SWEEP = "sweep.json"
"""In a sweep's folder: the arguments it was started with."""
FAILED = "failed"
"""In a sweep's folder: why runs failed, a file each."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for a failure nobody foresaw, 2 for bad
    input, 130 and 143 for Ctrl-C and SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    failures: list[int] = []
    sweep: list[tuple[Sweep, Path]] = []

    def task(config: DictConfig) -> None:
        context = HydraConfig.get()
        if context.mode == RunMode.MULTIRUN and not sweep:
            here = context.launcher._target_.endswith("BasicLauncher")
            total = jobs(asked.overrides, context.sweeper.get("params") or {}) if here else None
            sweep.append((Sweep(total), Path(context.sweep.dir)))
            if not config.run_dir and not config.resume:
                link_latest(sweep[0][1])
        try:
            _job(resolved(config), arguments, sweep[0][0] if sweep else None)
        except FedPGPError as error:
            _remember(str(error))
            failures.append(complain(error))
        except Exception:
            if context.mode != RunMode.MULTIRUN:
                raise
            _remember(traceback.format_exc())
            traceback.print_exc()  # the sweep continues
            failures.append(UNFORESEEN)
        finally:
            if sweep:
                sweep[0][0].end()

    register_resolvers()
    if said := settings_as_flags(arguments):
        raise FedPGPError(said)
    if "--help" in arguments and (words := [a for a in arguments if not a.startswith("-")]):
        print(explain(words))
        return 0
    arguments = _sweep_again(_together(readable(arguments)))
    asked, _ = split_options(arguments)
    sweep_asked = _is_sweep(asked)
    check_overrides(asked.overrides, sweep=sweep_asked)
    told = in_each_job(asked.overrides) if sweep_asked else asked.overrides
    renamed = dict(zip(asked.overrides, told, strict=True))
    sys.argv = [RUN, *(renamed.get(word, word) for word in arguments)]
    run = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)
    try:
        if asked.help:
            _wrapped(run)
        else:
            run()
    except KeyboardInterrupt:  # a run that has begun stops in its own way, and saves
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    except SystemExit:
        if sweep:
            print(f"resume the sweep with: {RUN} -m {typed('resume', sweep[0][1])}")
        raise
    if sweep and sweep[0][0].total:
        show_table(sweep[0][1])
        if failures:
            count, total = len(failures), sweep[0][0].total
            why = written_out(sweep[0][1] / FAILED)
            print(f"{count} of {total} jobs failed; why: {why}", file=sys.stderr)
    return max(failures, default=0)


def _together(arguments: list[str]) -> list[str]:
    """Return the arguments with the settings behind an option (``method=coop -m seed=0,1``) beside
    those before it: argparse takes one row of them only.

    Raises:
        FedPGPError: an option that does not exist.
    """
    asked, late = split_options(arguments)
    if any(word.startswith("-") for word in late):
        raise FedPGPError(
            f"unknown option {next(w for w in late if w[0] == '-')}; see {RUN} --help"
        )
    if not late:
        return arguments
    kept = list(arguments)
    for word in reversed(late):
        del kept[len(kept) - 1 - kept[::-1].index(word)]
    end = kept.index(asked.overrides[-1]) + 1
    return [*kept[:end], *late, *kept[end:]]


def _is_sweep(asked: argparse.Namespace) -> bool:
    """Return whether a sweep is asked for; an experiment that is one may be run once, but that is
    said."""
    modes = [
        str(o.value()).upper() for o in parse(asked.overrides) if o.key_or_group == "hydra.mode"
    ]
    if asked.multirun or modes == ["MULTIRUN"]:
        return True
    for override in parse(asked.overrides):
        if override.key_or_group == "experiment" and (swept := swept_by(str(override.value()))):
            print(
                f"note: {override.input_line} is a sweep over {', '.join(swept)}; without -m "
                "this is one run"
            )
    return False


def _wrapped(show_help: Callable[[], None]) -> None:
    """Hydra's help, whose lists of choices are one line each, in lines of a terminal's width."""
    text = StringIO()
    try:
        with redirect_stdout(text):
            show_help()
    except SystemExit as end:
        if end.code:
            raise
    wide = shutil.get_terminal_size().columns
    for line in text.getvalue().splitlines():
        lists = line.count(", ") > 1 and not line.startswith(" ")
        print(
            textwrap.fill(line, wide, subsequent_indent="    ", break_on_hyphens=False)
            if lists
            else line
        )
    print(explain_top())


def _remember(failure: str) -> None:
    """Keep why a run of a sweep failed: a launcher may have started it on another
    machine, and continues."""
    context = HydraConfig.get()
    if context.mode == RunMode.MULTIRUN:
        write_atomically(
            Path(context.sweep.dir) / FAILED / f"{job_name(context.overrides.task)}.txt",
            failure.encode(),
        )


def _job(config: dict, arguments: list[str], sweep: Sweep | None) -> None:
    """One run: new, resumed, or (in a sweep) one that is finished already."""
    from experiments import parts  # torch and Flower: not needed for --help
    from experiments.stopping import Stopped

    context = HydraConfig.get()
    overrides = [o for o in context.overrides.task if not o.startswith("resume=")]
    command = f"{RUN} {shlex.join(arguments)}".strip()
    try:
        if context.mode == RunMode.MULTIRUN:
            _one_of_many(config, arguments, Path(context.sweep.dir), overrides, sweep)
        elif config["resume"]:
            folder = Path(config["resume"])
            parts.resume(folder, changes_on_resume(config, overrides, folder))
        else:
            parts.start(config, command)
    except Stopped as stopped:
        sys.exit(stopped.code)


def _one_of_many(
    config: dict, arguments: list[str], folder: Path, overrides: list[str], sweep: Sweep
) -> None:
    from experiments import parts

    path = _folder_of_job(folder, config, overrides)
    print(sweep.begin(path.name))
    (folder / FAILED / f"{path.name}.txt").unlink(missing_ok=True)
    if not (folder / SWEEP).exists():
        write_atomically(folder / SWEEP, json.dumps({"arguments": arguments}, indent=1).encode())
    if not parts.started(path):
        command = f"{RUN} {shlex.join(arguments)}"
        parts.start({**config, "run_dir": str(path)}, command)
    elif not config["resume"]:
        again = typed("resume", folder)
        raise FedPGPError(
            f"{path} exists already; resume the sweep by {again}, or choose another run_dir"
        )
    else:
        changes = changes_on_resume(
            config, overrides, path
        )  # also of a finished one: it has to be this job's own
        if parts.finished(path, changes.get("rounds", parts.stored(path)["rounds"])):
            print(f"is finished: {written_out(path)}")
            sweep.skip()
        else:
            parts.resume(path, changes)


def _folder_of_job(folder: Path, config: dict, overrides: list[str]) -> Path:
    """Return a job's own folder in a sweep's; one with an older name only where it holds this very
    setting."""
    from experiments import parts

    path, older = folder / job_name(overrides), folder / older_job_name(overrides)
    if older != path and not parts.started(path) and parts.started(older):
        return path if changed_on_resume(overrides, config, parts.stored(older)) else older
    return path


def _sweep_again(arguments: list[str]) -> list[str]:
    """Return the arguments of a resumed sweep: after ``-m resume=FOLDER`` alone, those it was
    started with.

    Raises:
        FedPGPError: nothing can be resumed there, or a part of the first command line is missing.
    """
    parsed, _ = split_options(arguments)
    given = parse(parsed.overrides)
    folders = [Path(str(o.value())) for o in given if o.key_or_group == "resume" and o.value()]
    if not parsed.multirun or not folders:
        return arguments
    try:
        before = json.loads((folders[0] / SWEEP).read_text())["arguments"]
    except (OSError, *MALFORMED) as error:
        raise FedPGPError(
            f"{folders[0]} is no sweep's folder: it has no {SWEEP} that can be read"
        ) from error
    named = {o.key_or_group for o in given} | {"run_dir", "resume"}
    kept = [a for a in before if a.startswith("-") or parse([a])[0].key_or_group not in named]
    if all(may_change_on_resume(o.key_or_group) for o in given):
        return [*kept, *(a for a in arguments if a not in ("-m", "--multirun"))]
    if forgotten := [
        a
        for a in kept
        if not a.startswith("-") and not may_change_on_resume(parse([a])[0].key_or_group)
    ]:
        raise FedPGPError(
            f"the sweep in {folders[0]} was started with {shlex.join(forgotten)} too: give -m "
            f"{typed('resume', folders[0])} alone, or the whole command line (more values are "
            "allowed)"
        )
    return arguments


def changes_on_resume(config: dict, overrides: Sequence[str], folder: Path) -> dict:
    """Return settings of this command line that a resumed run may take over; others are refused,
    and fewer rounds."""
    from experiments.finished_run import check_more_rounds, from_its_prompts
    from experiments.membership import KEYS, check_members
    from experiments.parts import stored as stored_in

    stored = stored_in(folder)
    named = {override.key_or_group for override in parse(overrides)}
    differing = changed_on_resume(overrides, config, stored)
    if "rounds" in named & set(differing):
        check_more_rounds(stored, stored["rounds"], config["rounds"])
        differing.remove("rounds")
    if joined := named & set(differing) & set(KEYS):
        members = {key: config[key] if key in joined else stored.get(key, []) for key in KEYS}
        check_members(stored, {**stored, **members})
        differing = [key for key in differing if key not in joined]
    if differing:
        raise FedPGPError(
            f"{folder} was started with another configuration; other there: "
            f"{', '.join(differing)}. Leave it out, or start a new run"
            f"{from_its_prompts(stored, folder)}"
        )
    changes: dict = {}
    for override in parse(overrides):  # a choice of a group brings its settings; a key only itself
        top, *inner = override.key_or_group.split(".")
        if inner:
            changes.setdefault(top, dict(stored[top]))[".".join(inner)] = flatten(config).get(
                override.key_or_group
            )
        elif top in config:
            changes[top] = config[top]
    return changes


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # --help | head
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # what is still unwritten goes there at exit
        status = UNFORESEEN
    sys.exit(status)
