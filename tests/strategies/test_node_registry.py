"""What the server believes of a node's first answer, and how often it looks."""

import json
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict

from clients.messages import Job
from strategies import node_registry
from strategies.client_keys import FREE, KEY, Seats

ROW = {"id": 0, "domain": None, "train_images": 5, "test_images": 2, "trains": True}


class Grid:
    """Nodes that answer a greeting as told.

    Attributes:
        nodes: node -> (when it connected, its answer: a mapping, an error as text, or None for no answer yet).
        names, keys: of nodes, as the SuperLink has them registered.
        greeted: the nodes that were greeted, in order.
    """

    def __init__(self, nodes: dict[int, tuple[str, object]]):
        self.nodes, self.greeted, self.looks = nodes, [], 0
        self.names: dict[int, str] = {}
        self.keys: dict[int, bytes] = {}

    def get_nodes(self):
        self.looks += 1
        return [
            SimpleNamespace(
                node_id=node,
                last_activated_at=since,
                public_key=self.keys.get(node, b"key %d" % node),
                name=self.names.get(node, ""),
            )
            for node, (since, _) in self.nodes.items()
        ]

    def push_messages(self, messages):
        self.greeted += [message.dst_node_id for message in messages]
        return [str(len(self.greeted) - 1)]

    def pull_messages(self, ids):
        for id in ids:
            answer = self.nodes[self.greeted[int(id)]][1]
            if answer is not None:
                failed = isinstance(answer, str)
                content = RecordDict({"answer": ConfigRecord({"json": json.dumps(answer)})})
                yield SimpleNamespace(
                    has_error=lambda failed=failed: failed,
                    error=SimpleNamespace(reason=answer),
                    content=content,
                    metadata=SimpleNamespace(reply_to_message_id=id),
                )


class Called:
    """A roll on such a grid, with a clock that is set by hand; every :meth:`look` is long enough after the last."""

    def __init__(
        self,
        monkeypatch,
        nodes: dict,
        clients: int = 1,
        table: list | None = None,
        seats: Seats | None = None,
        names: dict | None = None,
    ):
        self.grid, self.now, self.told = Grid(nodes), 0.0, []
        self.grid.names |= names or {}
        monkeypatch.setattr(
            node_registry, "Message", lambda content, **options: SimpleNamespace(content=content, **options)
        )
        monkeypatch.setattr(node_registry, "time", SimpleNamespace(monotonic=lambda: self.now))
        job = Job("run", 1, "c", "", 0)
        self.roll = node_registry.Roll(self.grid, clients, job, "{}", {}, table, self.told.append, seats or Seats(FREE))
        self.look()

    def look(self, later: float = node_registry.INTERVAL) -> dict[int, str]:
        self.now += later
        return self.roll.look()


def here(client: int, since: str = "now") -> tuple[str, dict]:
    return since, {"client": client, "row": {**ROW, "id": client}}


def fails(client: int, since: str = "now") -> tuple[str, dict]:
    return since, {"client": client, "refused": "the disk is not there", "passing": True}


def differs(client: int, since: str = "now") -> tuple[str, dict]:
    return since, {"client": client, "refused": "model weights: a here, b on the server"}


def test_a_row_that_is_the_servers_own_is_taken(monkeypatch):
    rolled = Called(monkeypatch, {7: here(0)}, table=[ROW]).roll
    assert rolled.homes == {0: 7} and rolled.rows == {0: ROW}


@pytest.mark.parametrize(
    ("row", "table", "said"),
    [
        ({**ROW, "train_images": 10**9}, [ROW], "does not have the images that it was assigned"),
        ({**ROW, "train_images": -1}, None, "train_images=-1"),
        ({**ROW, "train_images": "many"}, None, "train_images='many'"),
        ({**ROW, "train_images": 10**15}, None, "train_images=1000000000000000"),
        ({**ROW, "domain": []}, None, "the row of client 0 is none"),
        ({"id": 0}, None, "train_images=None"),
        (None, None, "the row of client 0 is none"),
    ],
)
def test_a_row_that_cannot_be_is_refused(monkeypatch, row, table, said):
    rolled = Called(monkeypatch, {7: ("now", {"client": 0, "row": row})}, table=table).roll
    assert not rolled.homes and said in rolled.refused[7]


def test_a_doubted_node_is_greeted_at_once_and_has_lost_nothing(monkeypatch):
    called = Called(monkeypatch, {7: here(0)})
    assert called.look(0) == {} and called.grid.looks == 1  # it has just looked
    called.roll.doubt(0)
    assert called.look(0) == {} and (called.grid.looks, called.grid.greeted) == (2, [7, 7])


def test_a_node_that_does_not_answer_is_waited_for_once(monkeypatch):
    called = Called(monkeypatch, {1: here(0), 2: ("now", None)}, clients=2)
    assert called.roll.waiting == 1
    called.roll.wait_no_more()
    called.look()
    assert called.roll.waiting == 0 and called.grid.greeted == [1, 2]
    called.grid.nodes[2] = here(1)  # at last
    called.look()
    assert called.roll.homes == {0: 1, 1: 2}
    called.grid.nodes[2] = ("later", None)  # started again: it may answer this time
    assert called.look() == {2: "its node was started again"} and called.roll.waiting == 1


def test_a_client_that_stopped_answering_is_asked_nothing_until_it_does(monkeypatch):
    called = Called(monkeypatch, {1: here(0)})
    called.grid.nodes[1] = ("now", None)
    called.roll.doubt(0)
    called.look()
    assert called.roll.homes == {0: 1}  # there is hope
    called.roll.wait_no_more()
    called.roll.doubt(0)
    called.look()
    assert called.roll.homes == {} and called.roll.waiting == 0 and called.grid.greeted == [1, 1]
    called.grid.nodes[1] = here(0)
    called.look()
    assert called.roll.homes == {0: 1}


@pytest.mark.parametrize("failure", [fails(0), ("now", "out of memory")])
def test_a_node_where_something_went_wrong_is_greeted_again_a_few_times(monkeypatch, failure):
    called = Called(monkeypatch, {1: failure})
    called.look()
    assert called.grid.greeted == [1] and called.roll.refused and not called.roll.hopeless
    called.look(node_registry.AGAIN)
    called.look(node_registry.AGAIN)
    assert called.grid.greeted == [1, 1]  # the second pause is longer
    for _ in range(50):
        called.look(1000 * node_registry.AGAIN)
    assert len(called.grid.greeted) == node_registry.GREETINGS
    assert len(called.told) == 2  # that it is asked again, and that it is no more
    called.grid.nodes[1] = here(0, "later")
    called.look()
    assert called.roll.homes == {0: 1} and not called.roll.refused


def test_a_node_whose_trouble_passed_takes_part(monkeypatch):
    called = Called(monkeypatch, {1: fails(0)})
    called.grid.nodes[1] = here(0)
    called.look(node_registry.AGAIN)
    assert called.roll.homes == {0: 1} and not called.roll.refused


def test_a_node_that_differs_is_greeted_again_when_it_was_started_again(monkeypatch):
    called = Called(monkeypatch, {1: differs(0)})
    for _ in range(50):
        called.look(1000 * node_registry.AGAIN)
    assert called.grid.greeted == [1] and called.roll.hopeless == {0}
    called.grid.nodes = {2: here(0)}  # as another node, where Flower does not know its key
    called.look()
    assert called.roll.homes == {0: 2} and not called.roll.hopeless


def test_the_first_node_of_a_client_wins_and_another_takes_over_when_it_is_gone(monkeypatch):
    called = Called(monkeypatch, {1: here(0), 2: here(0)})
    assert called.roll.homes == {0: 1} and not called.roll.hopeless
    assert "two nodes say they are client 0: node 1 is, and node 2 has to wait" in called.roll.refused[2]
    for _ in range(50):
        called.look(1000 * node_registry.AGAIN)
    assert called.grid.greeted == [1, 2]
    del called.grid.nodes[1]
    assert called.roll.absence(9) == "its node is not connected"
    assert called.look() == {1: "its node went away"}
    assert called.roll.homes == {0: 2} and called.told[-1] == "client 0 is on node 2 now; before, it was on node 1"
    called.grid.nodes[1] = here(0, "later")
    called.look()
    assert called.roll.homes == {0: 2} and "node 1 has to wait" in called.roll.refused[1]


def test_a_seat_is_kept_through_trouble_and_not_through_a_difference(monkeypatch):
    called = Called(monkeypatch, {1: here(0), 2: here(0)})
    called.grid.nodes[1] = fails(0)
    called.roll.doubt(0)
    called.look()
    called.look()
    assert called.roll.homes == {} and called.grid.greeted == [1, 2, 1]
    assert "the disk is not there" in called.roll.absence(0)
    called.grid.nodes[1] = differs(0, "later")
    called.look()
    called.look()
    assert called.roll.homes == {0: 2} and set(called.roll.refused) == {1}


def test_only_a_client_s_own_refused_node_makes_it_hopeless(monkeypatch):
    nodes = {1: here(0), 2: here(0), 3: differs(9), 4: ("now", {"client": 7, "row": ROW}), 5: ("now", "no client-id")}
    called = Called(monkeypatch, nodes, clients=2)
    assert set(called.roll.refused) == {2, 3, 4, 5} and 1 not in called.roll.hopeless
    called.grid.nodes[6] = differs(1)
    called.look()
    assert 1 in called.roll.hopeless


def test_a_client_s_seat_is_kept_for_its_key(monkeypatch):
    """Another key in its place is refused while it is away, and does not end anybody's wait for it."""
    called = Called(monkeypatch, {1: here(0), 2: here(1)}, clients=2, seats=Seats(KEY))
    assert called.roll.homes == {0: 1, 1: 2}
    del called.grid.nodes[1]
    called.grid.nodes[3] = here(0)
    called.look()
    assert called.roll.homes == {1: 2} and not called.roll.hopeless
    assert "client 0, which came with another key before" in called.roll.refused[3]
    called.grid.nodes[3] = differs(0, "later")  # nor may it speak for that client
    called.look()
    assert not called.roll.hopeless
    called.grid.nodes[1] = here(0, "back")
    called.look()
    assert called.roll.homes == {0: 1, 1: 2}
    for _ in range(20):
        called.look(1000 * node_registry.AGAIN)
    assert called.grid.greeted == [1, 2, 3, 3, 1]


def test_a_seat_is_kept_over_a_resume(monkeypatch):
    held = Called(monkeypatch, {1: here(0)}, seats=Seats(KEY)).roll.seats.held
    again = Called(monkeypatch, {5: here(0)}, seats=Seats(KEY, held))
    assert not again.roll.homes and 5 in again.roll.refused
    again = Called(monkeypatch, {5: here(0)}, seats=Seats(FREE, held))  # its key was lost
    assert again.roll.homes == {0: 5}
    assert Called(monkeypatch, {5: here(0)}, seats=Seats(KEY, again.roll.seats.held)).roll.homes == {0: 5}


def test_a_registered_name_is_the_client(monkeypatch):
    """A node registered as client 1 is no other, and nobody else is client 1 while such a node is known."""
    nodes = {1: here(0), 2: here(0), 3: here(1)}
    names = {1: "client-1", 2: "client-0", 3: "lab"}
    called = Called(monkeypatch, nodes, clients=2, seats=Seats(KEY), names=names)
    assert called.roll.homes == {0: 2}
    assert "registered as client-1, and it says it is client 0" in called.roll.refused[1]
    assert "its key was not registered as client-1, and another was" in called.roll.refused[3]
    del called.grid.nodes[1]
    called.grid.nodes[3] = here(1, "later")
    called.look()
    assert called.roll.homes == {0: 2}
    called.grid.names[7], called.grid.nodes[7] = "client-1", here(1)  # a new key, registered under the same name
    called.look()
    assert called.roll.homes == {0: 2, 1: 7}


def test_a_node_leaves_a_seat_that_another_was_registered_for(monkeypatch):
    called = Called(monkeypatch, {1: here(0)}, seats=Seats(KEY))
    assert called.roll.homes == {0: 1}
    called.grid.names[2], called.grid.nodes[2] = "client-0", here(0)
    called.look()
    assert called.roll.homes == {0: 2} and 1 in called.roll.refused


def test_two_nodes_with_one_client_id_are_told_so(monkeypatch):
    called = Called(monkeypatch, {1: here(0), 2: here(0)}, seats=Seats(KEY))
    assert "two nodes say they are client 0, and node 1 is: " in called.roll.refused[2]
    assert "a client-id of its own in --node-config" in called.roll.refused[2]
