"""Replies are pulled side by side: one that is announced and does not come costs its node alone."""

import threading
import time
from types import SimpleNamespace

import pytest

from strategies import concurrent_grid
from strategies.concurrent_grid import ConcurrentGrid
from strategies.replies import pull_replies


class Links:
    """Flower's grid, of which some replies do not come: id -> what its pull does."""

    def __init__(self, **replies):
        self.replies, self.pulled = replies, []
        self.gone, self.meet = False, None
        self.inside = self.most = 0  # pulls at the same time
        self.lock = threading.Lock()

    def get_node_ids(self):
        if self.gone:
            raise ConnectionError("no SuperLink")
        return []

    def pull_messages(self, ids):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            return self._pulled(ids)
        finally:
            with self.lock:
                self.inside -= 1

    def _pulled(self, ids):
        if self.meet:
            self.meet.wait(60)
        found = []
        for id in ids:
            self.pulled.append(id)
            reply = self.replies.get(id)
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, threading.Event):
                reply.wait(60)
                reply = self.replies[id] = answer(id)
            if reply is not None:
                found.append(reply)
        return found


def answer(id):
    return SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=id))


def answered(replies):
    return sorted(reply.metadata.reply_to_message_id for reply in replies)


def test_one_that_does_not_come_holds_up_nobody():
    stuck = threading.Event()
    links = Links(a=answer("a"), b=stuck, c=None)
    grid = ConcurrentGrid(links, patience=0.2)
    replies, broken = pull_replies(grid, ["a", "b", "c"])
    assert answered(replies) == ["a"] and broken == {}
    assert pull_replies(grid, ["b", "c"]) == ([], {})
    assert links.pulled.count("b") == 1 and links.pulled.count("c") == 2  # b is under way
    stuck.set()
    replies = []
    while not replies:
        replies, broken = pull_replies(grid, ["b"])
    assert answered(replies) == ["b"] and broken == {}


def test_one_that_cannot_be_read_costs_its_node_alone():
    grid = ConcurrentGrid(Links(a=answer("a"), b=ValueError("no such object")))
    replies, broken = pull_replies(grid, ["a", "b"])
    assert answered(replies) == ["a"]
    assert broken == {"b": "its reply cannot be read (ValueError: no such object)"}
    assert pull_replies(ConcurrentGrid(Links(b=KeyError("x"))), ["b"])[1].keys() == {"b"}


def test_nobody_answers_for_another():
    """What a reply says of itself is its node's word."""
    grid = ConcurrentGrid(Links(a=None, b=answer("a")))
    replies, broken = pull_replies(grid, ["a", "b"])
    assert replies == [] and broken == {"b": "its reply says that it answers another message"}


def test_a_connection_that_is_gone_is_no_node_s_fault():
    links = Links(a=ConnectionError("gone"), b=ConnectionError("gone"))
    links.gone = True
    with pytest.raises(ConnectionError, match="no SuperLink"):
        pull_replies(ConcurrentGrid(links), ["a", "b"])


@pytest.mark.parametrize("side_by_side", [True, False])
def test_two_nodes_cannot_end_a_run(side_by_side):
    """The last two of a round send what cannot be read, or answer for each other."""
    links = Links(a=ValueError("no such object"), b=ValueError("no such object"))
    grid = ConcurrentGrid(links) if side_by_side else links
    assert pull_replies(grid, ["a", "b"])[1].keys() == {"a", "b"}
    if side_by_side:
        forged = ConcurrentGrid(Links(a=answer("b"), b=answer("a")))
        said = "its reply says that it answers another message"
        assert pull_replies(forged, ["a", "b"]) == ([], {"a": said, "b": said})


def test_of_many_a_broken_a_forged_and_a_stuck_one_are_their_own_nodes_loss():
    names = [f"m{i}" for i in range(150)]
    stuck, spoiled = threading.Event(), {"m3", "m4", "m5"}
    links = Links(**{name: answer(name) for name in names})
    links.replies |= {"m3": ValueError("no such object"), "m4": answer("m7"), "m5": stuck}
    grid = ConcurrentGrid(links, patience=0.5, workers=8)
    replies, broken = [], {}
    while len(replies) + len(broken) < len(names) - 1:
        news, reasons = pull_replies(
            grid, [n for n in names if n not in {*answered(replies), *broken}]
        )
        replies, broken = replies + news, broken | reasons
    assert set(answered(replies)) == set(names) - spoiled and len(replies) == len(names) - 3
    assert broken.keys() == {"m3", "m4"} and "another message" in broken["m4"]
    assert links.pulled.count("m5") == 1
    stuck.set()


def test_as_many_stuck_ones_as_there_are_workers_hold_up_nobody():
    stuck = threading.Event()
    names = [f"m{i}" for i in range(20)]
    links = Links(**dict.fromkeys(names[:4], stuck), **{name: answer(name) for name in names[4:]})
    grid, replies = ConcurrentGrid(links, patience=0.1, workers=2), []
    while len(replies) < 16:
        replies += pull_replies(grid, names)[0]
    assert set(answered(replies)) == set(names[4:])
    assert all(links.pulled.count(name) == 1 for name in names[:4])
    stuck.set()


def test_many_are_pulled_by_a_fixed_number_of_threads():
    names = [f"m{i}" for i in range(1000)]
    links = Links(**{name: answer(name) for name in names})
    links.meet = threading.Barrier(5)  # each waits for four others: so many are inside at least
    replies, broken = pull_replies(ConcurrentGrid(links, patience=30, workers=5), names)
    assert answered(replies) == sorted(names) and not broken
    assert links.most == 5 and links.pulled.count("m0") == 1


def test_of_many_that_have_not_come_not_all_are_looked_for_at_once(monkeypatch):
    monkeypatch.setattr(concurrent_grid, "PULLS_A_SECOND", 0.01)
    links = Links()
    grid = ConcurrentGrid(links, patience=30)
    for _ in range(3):
        assert pull_replies(grid, ["a", "b"]) == ([], {})
    assert sorted(links.pulled) == ["a", "b"]


def test_replies_of_rounds_before_slow_nobody_down(monkeypatch):
    monkeypatch.setattr(concurrent_grid, "PULLS_A_SECOND", 1.0)
    links = Links(**{f"m{i}": answer(f"m{i}") for i in range(100)})
    grid = ConcurrentGrid(links, patience=30)
    assert len(pull_replies(grid, [f"m{i}" for i in range(100)])[0]) == 100
    assert pull_replies(grid, ["a"]) == ([], {})
    grid._not_there["a"] -= 1.0  # a second later it is looked for again
    pull_replies(grid, ["a"])
    assert links.pulled.count("a") == 2


def test_a_reply_that_nobody_asks_for_any_more_is_dropped(monkeypatch):
    monkeypatch.setattr(concurrent_grid, "FORGOTTEN", -1.0)
    stuck = threading.Event()
    grid = ConcurrentGrid(Links(a=stuck, b=answer("b")), patience=0.1)
    assert pull_replies(grid, ["a"]) == ([], {})
    stuck.set()
    while grid._under_way:
        time.sleep(0.01)
    assert answered(pull_replies(grid, ["b"])[0]) == ["b"]
    assert not grid._replies
