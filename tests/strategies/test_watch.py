"""How far the clients are while the server waits: answers, and what workers tell of those still at
work."""

import threading

import pytest
from flwr.app import MessageType

import clients.progress
import strategies.watch
from clients.progress import Progress
from strategies.watch import Watch


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(strategies.watch, "LOOK", 0.01)
    monkeypatch.setattr(clients.progress, "BETWEEN", 0.0)


class Watcher:
    """Keeps what it is told, and can wait for it."""

    def __init__(self):
        self.told: list[tuple] = []
        self._news = threading.Condition()

    def __call__(self, *told) -> None:
        with self._news:
            self.told.append(told)
            self._news.notify_all()

    def is_told(self, *told) -> bool:
        with self._news:
            return self._news.wait_for(lambda: told in self.told, timeout=20)


def test_clients_at_work_count_beside_those_that_answered(tmp_path):
    watcher, worker = Watcher(), Progress(tmp_path)
    with Watch(tmp_path, watcher).during(3, MessageType.EVALUATE) as answered:
        answered(0, 5000)
        assert watcher.is_told(0, 5000, "round 3, clients evaluated")
        worker(1200, 2500, "clients")
        assert watcher.is_told(1200, 5000, "round 3, clients evaluated")
        worker.end()
        answered(2500, 5000)
        assert watcher.is_told(2500, 5000, "round 3, clients evaluated")
    counts = [done for done, _, _ in watcher.told]
    assert counts == sorted(counts)  # it never goes back
    before = len(watcher.told)
    Progress(tmp_path)(1, 2, "clients")
    assert len(watcher.told) == before  # nothing is told behind the end


def test_encoding_is_told_before_all(tmp_path):
    watcher, worker = Watcher(), Progress(tmp_path)
    with Watch(tmp_path, watcher).during(0, MessageType.QUERY, "clients") as answered:
        answered(0, 24)
        assert watcher.is_told(0, 24, "clients set up")
        worker(64, 4800, "encoding test images")
        assert watcher.is_told(64, 4800, "encoding test images")


def test_a_deployment_tells_of_answers_alone():
    watcher = Watcher()
    with Watch(None, watcher).during(1, MessageType.TRAIN) as answered:
        answered(2, 5)
        assert watcher.is_told(2, 5, "round 1, clients trained")
