"""Tables and pages from run folders: `python -m experiments.report DIR...`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console as RichConsole

from experiments.command import command
from experiments.overrides import user_path
from experiments.reporting import grids as printing
from experiments.reporting import significance, tables
from experiments.reporting.across import across_grids
from experiments.reporting.comparison import render_comparison
from experiments.reporting.groups import group_runs
from experiments.reporting.measured import measured_runs
from experiments.reporting.newcomers import newcomer_grid
from experiments.reporting.page import render_run
from experiments.reporting.published_figures import published_grid
from experiments.reporting.runs import Run, find_runs, read_run
from experiments.reporting.site import write_site
from experiments.reporting.table_csv import as_csv
from fedpgp.atomic_files import check_target, write_atomically
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.figures import CLIENT_FIGURES, LIFELONG, MODELS
from fedpgp.plain_text import written_out

_FORMATS = ("text", "markdown", "latex", "csv", "html")
_DESCRIPTION = """\
Tables from finished runs. Every run folder at or below the given folders is read; runs that differ
only in their seed make one row: mean ± sample standard deviation over seeds. The best row of a
column is bold (in text it has a *) and the second underlined, among rows with the same data, model,
partition and protocol. Only settings that differ are shown. Text fits the terminal (120 columns
elsewhere): a table for each data set and protocol, costs left out first, then long labels
shortened."""
_EXAMPLES = """\
examples:
  python -m experiments.report outputs/table1
      the table of all runs in that folder, in the terminal
  python -m experiments.report outputs/table1 --format html
      one self-contained page with table, curves and trade-off: outputs/table1/comparison.html
  python -m experiments.report outputs/default/2026-05-01_12-00-00 --format html
      a single run: its report.html, made again
  python -m experiments.report outputs/a outputs/b --format latex --out table.tex --significance
      two folders as one LaTeX table, and paired t-tests of the best row against the others
  python -m experiments.report outputs/dg --mean-over held_out
      one row for all domains held out (dataset: for all data sets)
  python -m experiments.report --published paper_base2novel
      what others published for an experiment; after it was run, ours stand beside it
  python -m experiments.report outputs/default --models zero_shot,global,personal --columns ece
      all three prompts, and one more column
  python -m experiments.report outputs/robustness --across strategy
      a table of local accuracy, and of each --columns: a column each strategy
  python -m experiments.report outputs --site build/results
      a site: a page a protocol and data set, and a method; without folders, of the kept runs

columns: local, base, novel, hm3 (HM), hm2 (of base and novel), unseen, last, average, forgetting,
backward and transfer (of several tasks), bytes, seconds and peak_rss_mb (peak memory) are always
there where the runs have them. Others to ask for: cm, f1_macro, balanced, ece, auroc, fpr95,
auroc_energy, fpr95_energy, worst10, std_clients.local, domains, domains_base, domains_novel,
datasets (one a domain or data set), any number in summary.json such as bytes_up, wire_bytes_up,
seconds.train, images_per_second, peak_gpu_mb, and of a run with an audit.json
(python -m experiments.audit) any number in it: audit.canaries.epsilon, audit.clients.global.auc."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 when something asked for is not there."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    try:
        _report(options, "python -m experiments.report " + shlex.join(arguments))
    except OSError as error:
        raise FedPGPError(str(error)) from error
    return 0


def _report(options: argparse.Namespace, command: str) -> None:
    models = _names(options.models)
    for model in models:
        if model not in MODELS:
            raise FedPGPError(f"no model {model!r}; there are: {', '.join(MODELS)}")
    if options.published and not options.folders:
        _nothing_run(options)
        return
    if options.site:
        _site(options, command)
        return
    if options.out:
        check_target(options.out)
    if not options.folders:
        raise FedPGPError(
            "name run folders, or folders that hold some; or experiments, with --published"
        )
    folders = find_runs(options.folders)
    if not folders:
        raise FedPGPError(
            f"no run folder in {', '.join(map(str, options.folders))}: a run folder holds "
            "config.yaml and metrics.jsonl"
        )

    runs, left_out = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except FedPGPError as error:
            left_out.append(f"unreadable: {error}")
    if options.format == "html" and len(folders) == 1:
        if not runs:
            raise FedPGPError(left_out[0])
        _write(options.out or runs[0].path / "report.html", render_run(runs[0]))
        return

    finished = [run for run in runs if run.status == "finished"]
    left_out += [_unfinished(run) for run in runs if run.status != "finished"]
    if not finished:
        raise FedPGPError("no finished run to make a table of:\n  " + "\n  ".join(left_out))
    columns = tables.expand_columns(
        [*CLIENT_FIGURES, *LIFELONG, *_names(options.columns), *tables.COSTS], finished
    )
    groups, notes = group_runs(finished)
    notes += tables.missing_clients(finished)
    rows = tables.make_rows(groups, models, columns)
    if options.mean_over:
        rows = tables.mean_over(rows, options.mean_over, columns)
    experiments = dict.fromkeys(
        [*_names(options.published), *(run.config.get("experiment_name", "") for run in runs)]
    )
    beside = [
        (name, grid) for name in experiments if (grid := published_grid(name, finished)) is not None
    ]
    newcomers = [
        grid
        for row in {tuple(run.path for run in row.runs): row for row in rows}.values()
        if (grid := newcomer_grid(row.runs, f"Newcomers, {row.name()}")) is not None
    ]
    comparisons = (
        significance.compare(rows, tables.shown_columns(rows, columns))
        if options.significance
        else None
    )

    if options.across:
        asked = _names(options.columns)
        shown = tables.expand_columns(asked, finished) if asked else ["local"]
        _across(options, across_grids(rows, options.across, shown, models), left_out)
        return
    if options.format == "html":
        drawn = tables.make_rows(
            groups, ["zero_shot", *(m for m in models if m != "zero_shot")], columns
        )
        page = render_comparison(
            rows, drawn, columns, models, comparisons, left_out, notes, command, beside
        )
        default = options.folders[0] if len(options.folders) == 1 else Path()
        _write(options.out or default / "comparison.html", page)
        return

    remarks = [f"not in the table: {line}" for line in left_out] + [
        f"note: {line}" for line in notes
    ]
    if comparisons:
        remarks += [f"note: {line}" for line in significance.significance_words(comparisons)]
    elif options.significance:
        remarks.append("note: no significance, it takes two rows with seeds in common")
    text = _as(
        options,
        rows,
        columns,
        models,
        comparisons or (),
        [*newcomers, *(grid for _, grid in beside)],
        remarks,
    )
    if options.out:
        _write(options.out, text)
    elif text:
        print(text, end="")
    for line in remarks:
        print(line, file=sys.stderr)


def _site(options: argparse.Namespace, command: str) -> None:
    """Write the results site of the folders' runs; without folders, of those that are published."""
    runs, left_out = [], []
    for folder in find_runs(options.folders):
        try:
            run = read_run(folder)
        except FedPGPError as error:
            left_out.append(f"unreadable: {error}")
            continue
        if run.status == "finished":
            runs.append(run)
        else:
            left_out.append(_unfinished(run))
    runs = runs if options.folders else list(measured_runs())
    if not runs:
        raise FedPGPError("no finished run to make a site of:\n  " + "\n  ".join(left_out))
    pages = write_site(runs, options.site, command, left_out)
    print(f"wrote {written_out(pages[0])} and {len(pages) - 1} more pages")


def _across(
    options: argparse.Namespace, found: Sequence[printing.Grid], left_out: Sequence[str]
) -> None:
    """Print or write the tables of ``--across``."""
    write = {
        "text": printing.as_text,
        "markdown": printing.as_markdown,
        "latex": printing.as_latex,
        "csv": printing.grid_as_csv,
    }
    if options.format not in write:
        raise FedPGPError(f"--across makes tables: --format is one of {', '.join(write)}")
    text = "\n".join(map(write[options.format], found))
    if options.out:
        _write(options.out, text)
    else:
        print(text, end="")
    for line in left_out:
        print(f"not in the table: {line}", file=sys.stderr)


def _as(
    options: argparse.Namespace,
    rows: list[tables.Row],
    columns: list[str],
    models: list[str],
    comparisons: Sequence[significance.Comparison],
    published: list[printing.Grid],
    remarks: list[str],
) -> str:
    """Return the tables in the format asked for; in a terminal they are printed, and nothing is
    returned."""
    if options.format == "csv":
        return "\n".join(
            [as_csv(rows, columns, comparisons), *map(printing.grid_as_csv, published)]
        )
    means, words = tables.over_parts(rows, columns)
    first = [replace(tables.result_grid(means, columns, models), heading=words)] if means else []
    beside = significance.comparison_grids(comparisons, models)
    if options.format != "text":
        write = {"markdown": printing.as_markdown, "latex": printing.as_latex}[options.format]
        return "\n".join(
            write(grid)
            for grid in [*first, tables.result_grid(rows, columns, models), *beside, *published]
        )

    results, beside = first + tables.text_grids(rows, columns, models), beside + published
    if options.out is None:  # a file does not wrap its lines
        asked, width = _names(options.columns), _width()
        costs = [tables.column_name(name) for name in reversed(tables.COSTS) if name not in asked]
        results, dropped = printing.fit(results, width, costs)
        beside, notes = printing.fit(beside, width, ["note"])
        dropped += notes
        results, beside = (
            [replace(one, heading=textwrap.fill(one.heading, width)) for one in some]
            for some in (results, beside)
        )
        if dropped:
            remarks.append(
                f"note: no room for {', '.join(dropped)}; --columns {','.join(tables.COSTS)} or "
                "--format csv has them"
            )
    if any(mark == "best" for grid in results for row in grid.rows for _, mark in row):
        remarks.append("note: * is the best of a column among the rows that can be compared")
    if options.out is None and sys.stdout.isatty():
        console = RichConsole(
            width=10_000
        )  # a table that is too wide is wrapped by the terminal, never cut
        for grid in results + beside:
            if grid.heading:
                console.print(grid.heading, style="bold", markup=False, highlight=False)
            console.print(printing.rich_table(grid))
            console.print()
        return ""
    return "\n".join(printing.as_text(grid) for grid in results + beside)


def _width() -> int:
    """Return the columns of the terminal; 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def _nothing_run(options: argparse.Namespace) -> None:
    """The published figures of experiments of which nothing was run."""
    for name in _names(options.published):
        grid = published_grid(name, [])
        if grid is None:
            raise FedPGPError(
                f"there are no published figures for the experiment {name!r} "
                f"(experiments/reporting/published/{name}.csv)"
            )
        (grid,), dropped = printing.fit([grid], _width(), ["note"])
        print(printing.as_text(grid))
        if dropped:
            print("note: no room for notes; a wider terminal shows them", file=sys.stderr)


def _unfinished(run: Run) -> str:
    where = f"{run.status} at round {run.rounds_done} of {run.rounds}"
    return f"{where}: {tables.describe(run)}, {run.path}"


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    print(f"wrote {written_out(path)}")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=user_path,
        metavar="DIR",
        help="run folders, or folders that hold some",
    )
    parser.add_argument(
        "--format", choices=_FORMATS, default="text", help="what to make (default: text)"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="write there instead of to the terminal (html: to comparison.html)",
    )
    parser.add_argument(
        "--significance",
        action="store_true",
        help="paired t-tests over seeds, the best row against the others",
    )
    parser.add_argument(
        "--models",
        default="personal",
        metavar="LIST",
        help="of zero_shot,global,personal (default: personal)",
    )
    parser.add_argument(
        "--mean-over",
        metavar="LABEL",
        help="one row for those that differ in it: dataset, held_out …",
    )
    parser.add_argument(
        "--published",
        default="",
        metavar="LIST",
        help="experiments whose published figures are shown too (those of the runs always are)",
    )
    parser.add_argument(
        "--across",
        metavar="LABEL",
        help="a column for each value of a setting, a table for each figure (local, or --columns)",
    )
    parser.add_argument(
        "--site",
        type=user_path,
        metavar="DIR",
        help="write the results site there, all pages of it",
    )
    parser.add_argument("--columns", default="", metavar="LIST", help="further columns, see below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
