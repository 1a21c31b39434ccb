"""Replies are pulled side by side: one that is announced and does not come costs its node alone."""

import threading
from types import SimpleNamespace

import pytest

from strategies.patient_grid import PatientGrid
from strategies.replies import pull_replies


class Links:
    """Flower's grid, of which some replies do not come: id -> what its pull does."""

    def __init__(self, **replies):
        self.replies, self.pulled = replies, []

    def pull_messages(self, ids):
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
    grid = PatientGrid(links, patience=0.2)
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
    grid = PatientGrid(Links(a=answer("a"), b=ValueError("no such object")))
    replies, broken = pull_replies(grid, ["a", "b"])
    assert answered(replies) == ["a"]
    assert broken == {"b": "its reply cannot be read (ValueError: no such object)"}
    assert pull_replies(PatientGrid(Links(b=KeyError("x"))), ["b"])[1].keys() == {"b"}


def test_nobody_answers_for_another():
    """What a reply says of itself is its node's word."""
    grid = PatientGrid(Links(a=None, b=answer("a")))
    replies, broken = pull_replies(grid, ["a", "b"])
    assert replies == [] and broken == {"b": "its reply says that it answers another message"}


def test_a_connection_that_is_gone_is_no_node_s_fault():
    grid = PatientGrid(Links(a=ConnectionError("gone"), b=ConnectionError("gone")))
    with pytest.raises(ConnectionError):
        pull_replies(grid, ["a", "b"])


def test_many_are_pulled_together():
    names = [f"m{i}" for i in range(1000)]
    links = Links(**{name: answer(name) for name in names})
    before = threading.active_count()
    replies, broken = pull_replies(PatientGrid(links, patience=30), names)
    assert answered(replies) == sorted(names) and not broken
    assert threading.active_count() < before + 70
