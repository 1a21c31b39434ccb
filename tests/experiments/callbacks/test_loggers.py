"""A logger that fails costs its own figures, and nothing of the run."""

import errno

import pytest

from experiments.callbacks.loggers.base import GuardedLogger, Logger
from experiments.callbacks.loggers.none import NoLogger
from experiments.runner import start
from tests.helpers.small import small_config, small_federation


@pytest.mark.parametrize("part", ["log", "close"])
def test_a_run_goes_on_without_a_logger_that_fails(part, tmp_path, monkeypatch, capsys):
    def full(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(NoLogger, part, full)
    summary = start(small_config(tmp_path / "run", "rounds=2"), federation_of=small_federation)
    assert summary["status"] == "finished"
    said = capsys.readouterr()
    assert (said.out + said.err).count("logger=none failed and gets no more figures") == 1
    assert "No space left on device" in said.out + said.err


def test_after_its_first_failure_it_is_told_nothing_more():
    told, warned = [], []

    class Failing(Logger):
        def log(self, record):
            told.append(record)
            raise ValueError("away")

        def close(self, summary):
            told.append(summary)

    guarded = GuardedLogger(Failing(), "x", warned.append)
    guarded.trained({"round": 1})
    guarded.evaluated({"round": 1}, [])
    guarded.close(None)
    assert told == [{"round": 1}] and len(warned) == 1 and "ValueError: away" in warned[0]
