"""What a person sees in the terminal while a run works, and the table at its end."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from experiments.callbacks.base import Callback
from experiments.callbacks.progress import ProgressLine
from experiments.overrides import resume_command
from experiments.reporting.formatting import (
    format_bytes,
    format_percent,
    format_rates,
    format_seconds,
)
from experiments.reporting.grids import rich_table
from experiments.reporting.newcomers import newcomer_grid
from experiments.reporting.runs import Run, block_figure, number
from fedpgp.evaluation.figures import COLUMNS, MODELS
from fedpgp.plain_text import called, indented, written_out

_COLUMNS = {name: figure for name, figure in COLUMNS.items() if figure.phrase}
_ROUNDS_REMEMBERED = 10  # the time left is judged by the newest rounds


class Console(Callback):
    """The lines of one run.

    In a terminal the line of the stage at work is live (a bar, the time left) and stays as a
    plain line when it is done; anywhere else (a file, a pipe, a continuous-integration log)
    there are only plain lines, one a round. Use it as a context manager, or call `close()`: the
    live line holds the cursor.
    """

    def __init__(
        self, total_rounds: int, stream: TextIO | None = None, *, tracebacks: bool = False
    ):
        """`stream`: where to write, standard output by default; `tracebacks`: show those of a
        method's code.
        """
        self.total_rounds = total_rounds
        self._tracebacks = tracebacks
        self._train: dict | None = None
        self._evaluation: dict | None = None
        self.names: dict[int, str] = {}  # client -> its name, where its node has told one
        self.one_prompt = (
            False  # whether the method has one prompt for all, which the server finds out
        )
        self._out = RichConsole(
            file=stream or sys.stdout, highlight=False, markup=False, emoji=False
        )
        self._line_of_progress = ProgressLine(self._out)
        self._answered = ""  # of how many clients the last evaluation is, where it is not all
        self._stage: tuple[str, float] | None = None
        self._rounds: deque[float] = deque(maxlen=_ROUNDS_REMEMBERED)
        self._rounds_seen = 0
        self._round_ended = math.inf

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stage(self, text: str) -> None:
        """Something has begun that takes a while: `loading the model`."""
        self._end_stage()
        self._stage = (text, time.monotonic())
        if self._out.is_terminal:
            self._line_of_progress.show(text)
        else:
            self._line(text)

    def progress(self, done: int, total: int, what: str) -> None:
        """How far something is that takes long: `encoding test images 1,200/4,800`."""
        self._line_of_progress.progress(done, total, what)

    def traceback(self, text: str) -> None:
        if self._tracebacks:
            self.note(text)

    def clients(self, table: list[dict]) -> None:
        self.names = {row["id"]: row["name"] for row in table if row.get("name")}

    def trained(self, record: dict) -> None:
        self._train = record

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        self._evaluation = record

    def mark(self, unevaluated: bool = False) -> dict:
        """Print the round, if it is complete."""
        if unevaluated:
            return {}
        self.round(self._train, self._evaluation)
        self._train = self._evaluation = None
        return {}

    def roll_back(self, mark: dict, server_round: int) -> None:
        self._train = self._evaluation = None

    def round(self, train: dict | None, evaluation: dict | None) -> None:
        """A round is done. Takes the objects of metrics.jsonl; no `train` for the evaluation
        before the first round."""
        self._end_stage()
        row = train or evaluation or {}
        index = int(row.get("round", 0))
        words = Text(
            f"round {index:>{len(str(self.total_rounds))}}/{self.total_rounds}", style="bold"
        )
        if train:
            self._took(number(train.get("seconds")))
            if not math.isnan(loss := number(train.get("loss"))):  # nobody was drawn, or tells one
                words.append(f"  loss {loss:.3f}", style="not bold")
        if evaluation and any(evaluation.get(model) for model in MODELS):
            words.append(self._accuracy(evaluation))
        if train:
            words.append(f"  {format_seconds(number(train.get('seconds')))}", style="not bold dim")
        left = self._time_left(index)
        if left is not None and train:
            words.append(f"  {format_seconds(left)} left", style="not bold dim")
        self._line(words)
        for entry in (train or {}).get("dropped") or []:
            who = called({"id": entry.get("client"), "name": self.names.get(entry.get("client"))})
            self.warn(f"{who} is left out of round {index}: {entry.get('reason')}")
        if index >= self.total_rounds:
            self._line_of_progress.stop()
        elif self._out.is_terminal:
            self._line_of_progress.show(
                f"round {index + 1}/{self.total_rounds}", index, self.total_rounds, left
            )

    def note(self, text: str) -> None:
        self._line(Text(indented(text), style="dim"))

    def warn(self, text: str) -> None:
        self._line(Text.assemble(("warning: ", "yellow"), indented(text)))

    def error(self, text: str) -> None:
        """One line, red in a terminal; the live line ends, and the stage without its tick."""
        self.close()
        self._line(Text.assemble(("error: ", "bold red"), indented(text)))

    def summary(
        self,
        summary: dict,
        run_dir: Path,
        seconds: float,
        again: str = "",
        encoded_before: float = 0.0,
    ) -> None:
        """The table at the end, what it cost, and where everything is. `seconds` is the time of the
        whole command, `again` the command that resumes the run, `encoded_before` the seconds of the
        encoding that were another command's (of a resumed run)."""
        self._end_stage()
        self._line_of_progress.stop()
        self._line("")
        if why := summary.get("no_figures"):
            self.note(why)
        elif summary.get("accuracy"):
            lifelong = summary.get("lifelong") or {}
            blocks = {
                model: block and {**block, **(lifelong.get(model) or {})}
                for model, block in summary["accuracy"].items()
            }
            table = accuracy_table(blocks, self.one_prompt)
            self._out.print(table)
            of = self._answered or "clients"
            self._line(Text(f"percent, mean over {of}{best_note(table)}", style="dim"))
            if rates := (summary.get("attack") or {}).get("success_rate"):
                self._line(f"the attack succeeds with {format_rates(rates)}")
            if grid := newcomer_grid([Run(run_dir, {}, summary, [], [])]):
                self._line("")
                self._line(Text(grid.heading, style="dim"))
                self._out.print(rich_table(grid))
            self._line("")
        sent, received = number(summary.get("bytes_up")), number(summary.get("bytes_down"))
        cost = (
            ""
            if math.isnan(sent)
            else f", {format_bytes(sent)} sent by the clients, {format_bytes(received)} received"
        )
        if summary.get("status") == "interrupted":
            self._line(Text(f"interrupted after {format_seconds(seconds)}{cost}", style="yellow"))
        else:
            encode = number((summary.get("seconds") or {}).get("encode")) - encoded_before
            encoding = f" ({format_seconds(encode)} encoding images)" if encode >= 1 else ""
            self._line(f"done in {format_seconds(seconds)}{encoding}{cost}")
        self._line(f"run folder: {written_out(run_dir)}")
        if (run_dir / "report.html").exists():
            self._line(f"report:     {written_out(run_dir / 'report.html')}")
        if summary.get("status") == "interrupted":
            self._line(f"resume with: {again or resume_command('', run_dir)}")

    def close(self) -> None:
        """Ends the live line; a stage at work was broken off and gets no tick. Safe to call
        twice."""
        self._stage = None
        self._line_of_progress.stop()

    def _accuracy(self, evaluation: dict) -> Text:
        """Local accuracy: the personal prompt's, beside it the global one's, or zero-shot's
        where that is the same."""
        zero, shared, personal = (block_figure(evaluation.get(model), "local") for model in MODELS)
        text = Text("  local ", style="not bold")
        text.append(format_percent(personal), style="bold")
        if not math.isnan(shared) and not self.one_prompt:
            text.append(f" (global {format_percent(shared)})")
        elif not math.isnan(zero):
            text.append(f" (zero-shot {format_percent(zero)})")
        self._answered = clients_answered(evaluation)
        if self._answered:
            drawn = number(evaluation.get("drawn_clients"))
            as_drawn = number(evaluation.get("clients")) == drawn
            text.append(f" ({self._answered})", style="dim" if as_drawn else "yellow")
        return text

    def _took(self, seconds: float) -> None:
        """Remembers a round's time: from the end of the last one, evaluation too; the first
        pays for starting up."""
        if self._rounds_seen == 1:
            self._rounds.clear()
        self._rounds_seen += 1
        self._rounds.append(max(seconds, time.monotonic() - self._round_ended))
        self._round_ended = time.monotonic()

    def _time_left(self, index: int) -> float | None:
        known = [seconds for seconds in self._rounds if not math.isnan(seconds)]
        if not known or index >= self.total_rounds:
            return None
        return sum(known) / len(known) * (self.total_rounds - index)

    def _line(self, text: str | Text) -> None:
        # soft_wrap: a log line is one line, however narrow the stream claims to be
        self._out.print(text, soft_wrap=True)

    def _end_stage(self) -> None:
        """In a terminal, a finished stage leaves a line with its time."""
        if self._stage is None:
            return
        (text, began), self._stage = self._stage, None
        if self._out.is_terminal:
            self._line(
                Text.assemble(
                    ("✓ ", "green"), text, (f"  {format_seconds(time.monotonic() - began)}", "dim")
                )
            )


def clients_answered(evaluation: dict) -> str:
    """`5 of 6 clients`, where some were not drawn for the evaluation or did not answer it; else
    nothing."""
    answered, clients = number(evaluation.get("clients")), number(evaluation.get("all_clients"))
    return f"{answered:.0f} of {clients:.0f} clients" if answered < clients else ""


def best_note(table: Table) -> str:
    """What the stars of an :func:`accuracy_table` mean, where it has any (all figures of a
    column may be equal)."""
    starred = any("*" in str(cell) for column in table.columns for cell in column.cells)
    return "; * the best" if starred else ""


def accuracy_table(accuracy: dict[str, dict | None], one_prompt: bool = False) -> Table:
    """Rows zero-shot, global and, unless there is one prompt for all, personal prompt;
    columns local, base, novel, HM and unseen where the protocol has them. The best of a
    column is bold with a star.
    """
    columns = [
        name
        for name in _COLUMNS
        if name == "local"
        or any(not math.isnan(block_figure(accuracy.get(model), name)) for model in MODELS)
    ]
    table = Table(
        box=None, padding=(0, 3, 0, 0), header_style="dim", show_edge=False, pad_edge=False
    )
    table.add_column("")
    for column in columns:
        table.add_column(_COLUMNS[column].title + " ", justify="right", min_width=7)
    shown = [model for model in MODELS if not (one_prompt and model == "personal")]
    texts = {
        c: [format_percent(block_figure(accuracy.get(model), c)) for model in shown]
        for c in columns
    }
    best = {
        c: (min if _COLUMNS[c].lower_is_better else max)(
            (float(text) for text in of if text != "–"), default=math.nan
        )
        for c, of in texts.items()
    }
    for k, model in enumerate(shown):
        cells = []
        for column in columns:
            numbers = {float(text) for text in texts[column] if text != "–"}
            marked = len(numbers) > 1 and texts[column][k] == format_percent(best[column])
            cells.append(
                Text(texts[column][k] + ("*" if marked else " "), style="bold" if marked else "")
            )
        table.add_row(MODELS[model], *cells)
    return table
