"""What the server believes of a node's first answer, and how often it looks."""

import json
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict

import strategies.roll as roll
from clients.wire import Job

ROW = {"id": 0, "domain": None, "train_images": 5, "test_images": 2, "trains": True}


class OneNode:
    """A grid with one node that answers every greeting with the same row."""

    def __init__(self, row: object):
        self.row, self.greetings, self.looks = row, 0, 0

    def get_nodes(self):
        self.looks += 1
        return [SimpleNamespace(node_id=7, last_activated_at="now")]

    def push_messages(self, messages):
        self.greetings += 1
        return [f"greeting-{self.greetings}"]

    def pull_messages(self, ids):
        content = RecordDict({"answer": ConfigRecord({"json": json.dumps({"client": 0, "row": self.row})})})
        metadata = SimpleNamespace(reply_to_message_id=ids[0])
        return [SimpleNamespace(has_error=lambda: False, content=content, metadata=metadata)]


def called(monkeypatch, row, table) -> tuple[roll.Roll, OneNode]:
    monkeypatch.setattr(roll, "Message", lambda content, **options: SimpleNamespace(content=content, **options))
    grid = OneNode(row)
    rolled = roll.Roll(grid, 1, Job("run", 1, "c", "", 0), "{}", {}, table, lambda warning: None)
    rolled.look()
    return rolled, grid


def test_a_row_that_is_the_servers_own_is_taken(monkeypatch):
    rolled, _ = called(monkeypatch, ROW, [ROW])
    assert rolled.homes == {0: 7} and rolled.rows == {0: ROW}


@pytest.mark.parametrize(
    ("row", "table", "said"),
    [
        ({**ROW, "train_images": 10**9}, [ROW], "does not have the images that it was dealt"),
        ({**ROW, "train_images": -1}, None, "train_images=-1"),
        ({**ROW, "train_images": "many"}, None, "train_images='many'"),
        ({**ROW, "domain": []}, None, "cannot be read"),
        ({"id": 0}, None, "cannot be read"),
        (None, None, "cannot be read"),
    ],
)
def test_a_row_that_cannot_be_is_refused(monkeypatch, row, table, said):
    rolled, _ = called(monkeypatch, row, table)
    assert not rolled.homes and said in rolled.refused[7]


def test_a_doubted_node_is_greeted_at_once_and_has_lost_nothing(monkeypatch):
    rolled, grid = called(monkeypatch, ROW, [ROW])
    assert rolled.look() == {} and grid.looks == 1  # it has just looked
    rolled.doubt(0)
    assert rolled.look() == {} and (grid.looks, grid.greetings) == (2, 2)
