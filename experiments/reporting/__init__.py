"""Run folders as tables and pages. `write_report(run_dir)` makes the page of one run."""

from experiments.reporting.page import write_report
from experiments.reporting.runs import Run, find_runs, read_run

__all__ = ["Run", "find_runs", "read_run", "write_report"]
