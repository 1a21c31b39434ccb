"""Several callbacks are told everything, in turn; the server knows no other names."""

import inspect

import pytest

from experiments.callbacks.base import Callback, Callbacks
from experiments.callbacks.checkpoint import CheckpointMark, marked_length
from experiments.run_folder import RunFolder
from strategies.server import Observer

METHODS = sorted(name for name in vars(Callback) if not name.startswith("_"))


class Recorder(Callback):
    """Writes down what it is told."""

    def __init__(self, name, told, said=None):
        self.name, self.told, self.said = name, told, said

    def __getattribute__(self, name):
        if name in METHODS:
            return lambda *arguments: self.told.append((self.name, name, *arguments)) or self.said
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", METHODS)
def test_everything_is_told_to_each_in_turn(name):
    told = []
    several = Callbacks([Recorder("first", told, {"a": 1}), Recorder("second", told, {"b": 2})])
    parameters = [p for p in inspect.signature(getattr(Callback, name)).parameters if p != "self"]
    answer = getattr(several, name)(*parameters)
    assert told == [("first", name, *parameters), ("second", name, *parameters)]
    assert answer == ({"a": 1, "b": 2} if name == "mark" else None)


def test_a_callback_hears_what_the_server_says_and_needs_to_do_nothing_of_it():
    assert sorted(name for name in vars(Observer) if not name.startswith("_")) == METHODS
    assert Callback().mark() == {} and Callback().stage("loading the model") is None


def test_what_was_written_after_a_mark_is_dropped_when_the_run_goes_back(tmp_path):
    folder = RunFolder(tmp_path)
    callback = CheckpointMark(folder)
    folder.metric({"kind": "train", "round": 1})
    mark = callback.mark()
    folder.metric({"kind": "train", "round": 2})
    callback.roll_back(mark, 1)
    folder.metric({"kind": "eval", "round": 1})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"kind": "train", "round": 1}', '{"kind": "eval", "round": 1}']
    assert marked_length({"observer": mark}) == mark["metrics_bytes"] > marked_length(None) == 0
