"""How far something is, in a terminal and in a log."""

import io
import re

import pytest
from rich.console import Console as RichConsole

import experiments.callbacks.progress
from experiments.callbacks.progress import ProgressLine


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(experiments.callbacks.progress.time, "monotonic", lambda: now[0])
    return now


def lines(steps: list[tuple[float, int, int, str]], clock: list[float]) -> list[str]:
    out = io.StringIO()
    line = ProgressLine(RichConsole(file=out, highlight=False))
    for seconds, done, total, what in steps:
        clock[0] += seconds
        line.progress(done, total, what)
    line.stop()
    return out.getvalue().splitlines()


def test_a_log_gets_a_line_every_ten_seconds(clock):
    steps = [(0, 0, 4000, "encoding"), (5, 500, 4000, "encoding"), (5, 1000, 4000, "encoding")]
    steps += [
        (9, 1900, 4000, "encoding"),
        (1, 2000, 4000, "encoding"),
        (20, 4000, 4000, "encoding"),
    ]
    assert lines(steps, clock) == [
        "encoding 1,000/4,000, 30 s left",
        "encoding 2,000/4,000, 20 s left",
        "encoding 4,000/4,000",
    ]


def test_what_is_short_and_what_begins_anew_gets_none(clock):
    steps = [
        (0, 0, 24, "round 1"),
        (3, 24, 24, "round 1"),
        (9, 1, 24, "round 2"),
        (8, 24, 24, "round 2"),
    ]
    assert lines([*steps, (9, 3, 24, "round 2")], clock) == []


def test_what_was_done_before_does_not_shorten_the_time_left(clock):
    """3,000 of 4,000 were there when it began; 10 took ten seconds."""
    assert lines([(0, 3000, 4000, "encoding"), (10, 3010, 4000, "encoding")], clock) == [
        "encoding 3,010/4,000, 16:30 min left"
    ]


def test_a_terminal_shows_a_bar_that_goes(clock):
    out = io.StringIO()
    line = ProgressLine(RichConsole(file=out, force_terminal=True, width=90, highlight=False))
    line.progress(0, 4800, "encoding images")
    assert not out.getvalue()
    clock[0] += 3
    line.progress(1200, 4800, "encoding images")
    line.stop()
    line.stop()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "encoding images 1,200/4,800" in text and "9.0 s left" in text and "━" in text
    assert (
        "\x1b[?25l" in out.getvalue() and "\x1b[?25h" in out.getvalue()
    )  # the cursor is hidden, and given back
