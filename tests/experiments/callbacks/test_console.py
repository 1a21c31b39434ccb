"""What a person reads while a run works: plain lines in a file, a live line in a terminal."""

import io
import re
from pathlib import Path

import pytest

from experiments.callbacks.console import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def block(local, base=50.0, novel=40.0):
    return {"local": local, "base": base, "novel": novel, "hm3": 47.123, "hm2": 44.4}


def train(index, seconds=2.0, dropped=()):
    return {
        "kind": "train",
        "round": index,
        "loss": 1.23456,
        "clients": 4,
        "seconds": seconds,
        "dropped": list(dropped),
    }


def evaluation(index, shared=61.26, personal=70.04):
    blocks = {
        "zero_shot": block(42.0),
        "global": block(shared) if shared else None,
        "personal": block(personal),
    }
    return {"kind": "eval", "round": index} | blocks


def summary(**changes):
    accuracy = {
        model: block(local)
        for model, local in (("zero_shot", 42.0), ("global", 61.26), ("personal", 70.04))
    }
    return {
        "status": "finished",
        "accuracy": accuracy,
        "bytes_up": 1_500_000,
        "bytes_down": 2_500_000,
    } | changes


def test_plain_lines(tmp_path):
    stream = io.StringIO()
    with Console(12, stream) as console:
        console.stage("encoding images")
        console.progress(4800, 4800, "encoding images")  # a short one is not worth a line
        console.round(None, evaluation(0))
        console.round(train(1), evaluation(1))
        console.round(train(2, seconds=4.0), None)
        console.round(train(12), evaluation(12))
        console.note("a [bracket] stays")
    assert stream.getvalue().splitlines() == [
        "encoding images",
        "round  0/12  local 70.0 (global 61.3)",
        "round  1/12  loss 1.235  local 70.0 (global 61.3)  2.0 s  22 s left",
        "round  2/12  loss 1.235  4.0 s  40 s left",
        "round 12/12  loss 1.235  local 70.0 (global 61.3)  2.0 s",
        "a [bracket] stays",
    ]


def test_long_lines_are_not_broken():
    stream = io.StringIO()
    Console(1, stream).warn("word " * 100)
    assert len(stream.getvalue().splitlines()) == 1


def test_dropped_clients_are_warned_of():
    stream = io.StringIO()
    Console(3, stream).round(
        train(2, dropped=[{"client": 7, "reason": "loss is NaN at round 2, step 5"}]), None
    )
    assert (
        "warning: client 7 is left out of round 2: loss is NaN at round 2, step 5"
        in stream.getvalue()
    )


@pytest.mark.parametrize("say", ["note", "warn", "error"])
def test_no_text_forges_a_line_or_moves_the_cursor(say):
    """A class folder may have any name, and a traceback several lines."""
    stream = io.StringIO()
    getattr(Console(3, stream), say)("x\x1b[2J\ndone in 3s\r\x1b]0;title\x07\n")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("x") and second == "  done in 3s"


def test_one_prompt_only():
    stream = io.StringIO()
    console = Console(3, stream)
    console.round(train(1), evaluation(1, shared=None))  # a local-only method
    assert stream.getvalue().count("local 70.0 (zero-shot 42.0)") == 1
    console.round(train(2), evaluation(2, shared=70.04))  # alike by chance
    assert "local 70.0 (global 70.0)" in stream.getvalue()
    console.one_prompt = True
    console.round(train(3), evaluation(3, shared=70.04))
    assert stream.getvalue().count("local 70.0 (zero-shot 42.0)") == 2


def test_a_resumed_run_judges_the_time_left_by_its_own_rounds():
    stream = io.StringIO()
    Console(100, stream).round(train(91, seconds=3.0), None)
    assert "27 s left" in stream.getvalue()


def test_summary(tmp_path):
    (tmp_path / "report.html").touch()
    stream = io.StringIO()
    with Console(3, stream) as console:
        console.summary(summary(), tmp_path, 95.2)
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines() if line.strip()]
    assert lines == [
        "local base novel HM",
        "zero-shot 42.0 50.0 40.0 47.1",
        "global prompt 61.3 50.0 40.0 47.1",
        "personal prompt 70.0* 50.0 40.0 47.1",
        "percent, mean over clients; * the best",
        "done in 1:35 min, 1.5 MB sent by the clients, 2.5 MB received",
        f"run folder: {tmp_path}",
        f"report: {tmp_path / 'report.html'}",
    ]


def test_a_folder_s_name_forges_no_line(tmp_path):
    stream = io.StringIO()
    with Console(3, stream) as console:
        console.summary(summary(), tmp_path / "a\ndone in 3s\x1b[2J\u202e\udcff", 95.2)
    line = next(line for line in stream.getvalue().splitlines() if "run folder" in line)
    assert line == rf"run folder: {tmp_path}/a\ndone in 3s\x1b[2J\u202e\xff"


def test_a_resumed_run_tells_of_its_own_encoding():
    stream = io.StringIO()
    accuracy = {model: block(44.4) for model in ("zero_shot", "global", "personal")}
    console = Console(3, stream)
    console.summary(
        {"accuracy": accuracy, "seconds": {"encode": 75.2}}, Path("run"), 10, encoded_before=75.0
    )
    assert "done in 10 s\n" in stream.getvalue()
    assert "percent, mean over clients\n" in stream.getvalue()  # nothing is the best


def test_the_best_is_marked_and_not_the_last():
    accuracy = {
        "zero_shot": block(42.0, novel=52.04),
        "global": block(71.0, 51.0),
        "personal": block(70.0, 51.04),
    }
    stream = io.StringIO()
    console = Console(3, stream)
    console.summary({"accuracy": accuracy, "seconds": {"encode": 54.2}}, Path("run"), 76)
    rows = [line.split() for line in stream.getvalue().splitlines()[2:5]]
    assert [row[-4:] for row in rows] == [
        ["42.0", "50.0", "52.0*", "47.1"],
        ["71.0*", "51.0*", "40.0", "47.1"],
        ["70.0", "51.0*", "40.0", "47.1"],
    ]
    assert "done in 1:16 min (54 s encoding images)" in stream.getvalue()


def test_summary_without_novel_classes_or_global_prompt(tmp_path):
    nothing = {"base": None, "novel": float("nan"), "hm3": None}
    accuracy = {
        "zero_shot": block(42.0) | nothing,
        "global": None,
        "personal": block(70.0) | nothing,
    }
    stream = io.StringIO()
    Console(3, stream).summary(summary(accuracy=accuracy, status="interrupted"), tmp_path, 5)
    text = stream.getvalue()
    assert [line.split() for line in text.splitlines()[1:5]] == [
        ["local"],
        ["zero-shot", "42.0"],
        ["global", "prompt", "–"],
        ["personal", "prompt", "70.0*"],
    ]
    assert (
        "interrupted after 5.0 s" in text
        and f"resume with: python -m experiments.run resume={tmp_path}" in text
    )


def test_terminal_has_a_live_line(terminal, tmp_path):
    with Console(2, terminal) as console:
        console.stage("loading the model")
        console.round(train(1), evaluation(1))
        console.round(train(2), evaluation(2))
        console.summary(summary(), tmp_path, 5)
    written = terminal.getvalue()
    assert (
        "\x1b[?25l" in written and written.count("\x1b[?25h") >= 1
    )  # the cursor is hidden, and given back
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert (
        "✓ loading the model" in text
        and "round 1/2  loss 1.235  local 70.0 (global 61.3)  2.0 s  2.0 s left" in text
    )
    assert "personal prompt" in text


def test_an_error_ends_the_live_line(terminal):
    console = Console(2, terminal)
    console.stage("loading the model")
    console.error("no such file: weights.pt")
    console.close()
    console.close()
    assert "error: " in terminal.getvalue() and terminal.getvalue().rstrip().endswith(
        "no such file: weights.pt"
    )


def test_an_evaluation_says_of_how_many_clients(tmp_path):
    stream = io.StringIO()
    console = Console(3, stream)
    console.round(train(2), evaluation(2) | {"clients": 6, "all_clients": 6})
    console.round(train(3), evaluation(3) | {"clients": 5, "all_clients": 6})
    console.summary(summary(), tmp_path, 5)
    lines = stream.getvalue().splitlines()
    assert "of" not in lines[0] and "local 70.0 (global 61.3) (5 of 6 clients)" in lines[1]
    assert "percent, mean over 5 of 6 clients; * the best" in lines
