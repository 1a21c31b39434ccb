"""What the server believes of a node's first reply, and how often it looks."""

import json
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict

from clients.messages import Job
from strategies import node_registry
from strategies.client_keys import FREE, KEY, ClientKeys

ROW = {"id": 0, "domain": None, "train_images": 5, "test_images": 2, "trains": True}


class Grid:
    """Nodes that answer a handshake as told.

    Attributes:
        nodes: node -> (when it connected, its answer: a mapping, an error as text, or
            None for no reply yet).
        names, keys: of nodes, as the SuperLink has them registered.
        asked: the nodes that were sent a handshake, in order.
    """

    def __init__(self, nodes: dict[int, tuple[str, object]]):
        self.nodes, self.asked, self.looks = nodes, [], 0
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
        self.asked += [message.dst_node_id for message in messages]
        return [str(len(self.asked) - 1)]

    def pull_messages(self, ids):
        for id in ids:
            answer = self.nodes[self.asked[int(id)]][1]
            if answer is not None:
                failed = isinstance(answer, str)
                content = RecordDict({"answer": ConfigRecord({"json": json.dumps(answer)})})
                yield SimpleNamespace(
                    has_error=lambda failed=failed: failed,
                    error=SimpleNamespace(reason=answer),
                    content=content,
                    metadata=SimpleNamespace(reply_to_message_id=id),
                )


class Scenario:
    """A registry on such a grid, with a clock that is set by hand; every
    :meth:`refresh` is long enough after the last."""

    def __init__(
        self,
        monkeypatch,
        nodes: dict,
        clients: int = 1,
        table: list | None = None,
        keys: ClientKeys | None = None,
        names: dict | None = None,
    ):
        self.grid, self.now, self.told = Grid(nodes), 0.0, []
        self.grid.names |= names or {}
        monkeypatch.setattr(
            node_registry,
            "Message",
            lambda content, **options: SimpleNamespace(content=content, **options),
        )
        monkeypatch.setattr(node_registry, "time", SimpleNamespace(monotonic=lambda: self.now))
        job = Job("run", 1, "c", "", 0)
        self.registry = node_registry.NodeRegistry(
            self.grid, clients, job, "{}", {}, table, self.told.append, keys or ClientKeys(FREE)
        )
        self.refresh()

    def refresh(self, later: float = node_registry.INTERVAL) -> dict[int, str]:
        self.now += later
        return self.registry.refresh()


def here(client: int, since: str = "now") -> tuple[str, dict]:
    return since, {"client": client, "row": {**ROW, "id": client}}


def fails(client: int, since: str = "now") -> tuple[str, dict]:
    return since, {"client": client, "rejection": "the disk is not there", "transient": True}


def differs(client: int, since: str = "now") -> tuple[str, dict]:
    return since, {"client": client, "rejection": "model weights: a here, b on the server"}


def test_a_row_that_is_the_servers_own_is_taken(monkeypatch):
    registry = Scenario(monkeypatch, {7: here(0)}, table=[ROW]).registry
    assert registry.node_of == {0: 7} and registry.rows == {0: ROW}


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
    registry = Scenario(monkeypatch, {7: ("now", {"client": 0, "row": row})}, table=table).registry
    assert not registry.node_of and said in registry.rejected[7]


def test_a_doubted_node_is_greeted_at_once_and_has_lost_nothing(monkeypatch):
    scenario = Scenario(monkeypatch, {7: here(0)})
    assert scenario.refresh(0) == {} and scenario.grid.looks == 1  # it has just looked
    scenario.registry.recheck(0)
    assert scenario.refresh(0) == {} and (scenario.grid.looks, scenario.grid.asked) == (2, [7, 7])


def test_a_node_that_does_not_answer_is_waited_for_once(monkeypatch):
    scenario = Scenario(monkeypatch, {1: here(0), 2: ("now", None)}, clients=2)
    assert scenario.registry.waiting == 1
    scenario.registry.stop_waiting()
    scenario.refresh()
    assert scenario.registry.waiting == 0 and scenario.grid.asked == [1, 2]
    scenario.grid.nodes[2] = here(1)  # at last
    scenario.refresh()
    assert scenario.registry.node_of == {0: 1, 1: 2}
    scenario.grid.nodes[2] = ("later", None)  # started again: it may answer this time
    assert (
        scenario.refresh() == {2: "its node was started again"} and scenario.registry.waiting == 1
    )


def test_a_client_that_stopped_answering_is_asked_nothing_until_it_does(monkeypatch):
    scenario = Scenario(monkeypatch, {1: here(0)})
    scenario.grid.nodes[1] = ("now", None)
    scenario.registry.recheck(0)
    scenario.refresh()
    assert scenario.registry.node_of == {0: 1}  # there is hope
    scenario.registry.stop_waiting()
    scenario.registry.recheck(0)
    scenario.refresh()
    assert (
        scenario.registry.node_of == {}
        and scenario.registry.waiting == 0
        and scenario.grid.asked == [1, 1]
    )
    scenario.grid.nodes[1] = here(0)
    scenario.refresh()
    assert scenario.registry.node_of == {0: 1}


@pytest.mark.parametrize("failure", [fails(0), ("now", "out of memory")])
def test_a_node_where_something_went_wrong_is_greeted_again_a_few_times(monkeypatch, failure):
    scenario = Scenario(monkeypatch, {1: failure})
    scenario.refresh()
    assert (
        scenario.grid.asked == [1]
        and scenario.registry.rejected
        and not scenario.registry.rejected_for_good
    )
    scenario.refresh(node_registry.RETRY_AFTER)
    scenario.refresh(node_registry.RETRY_AFTER)
    assert scenario.grid.asked == [1, 1]  # the second pause is longer
    for _ in range(50):
        scenario.refresh(1000 * node_registry.RETRY_AFTER)
    assert len(scenario.grid.asked) == node_registry.HANDSHAKES
    assert len(scenario.told) == 2  # that it is asked again, and that it is no more
    scenario.grid.nodes[1] = here(0, "later")
    scenario.refresh()
    assert scenario.registry.node_of == {0: 1} and not scenario.registry.rejected


def test_a_node_whose_trouble_passed_takes_part(monkeypatch):
    scenario = Scenario(monkeypatch, {1: fails(0)})
    scenario.grid.nodes[1] = here(0)
    scenario.refresh(node_registry.RETRY_AFTER)
    assert scenario.registry.node_of == {0: 1} and not scenario.registry.rejected


def test_a_node_that_differs_is_greeted_again_when_it_was_started_again(monkeypatch):
    scenario = Scenario(monkeypatch, {1: differs(0)})
    for _ in range(50):
        scenario.refresh(1000 * node_registry.RETRY_AFTER)
    assert scenario.grid.asked == [1] and scenario.registry.rejected_for_good == {0}
    scenario.grid.nodes = {2: here(0)}  # as another node, where Flower does not know its key
    scenario.refresh()
    assert scenario.registry.node_of == {0: 2} and not scenario.registry.rejected_for_good


def test_the_first_node_of_a_client_wins_and_another_takes_over_when_it_is_gone(monkeypatch):
    scenario = Scenario(monkeypatch, {1: here(0), 2: here(0)})
    assert scenario.registry.node_of == {0: 1} and not scenario.registry.rejected_for_good
    assert (
        "two nodes say they are client 0: node 1 is, and node 2 has to wait"
        in scenario.registry.rejected[2]
    )
    for _ in range(50):
        scenario.refresh(1000 * node_registry.RETRY_AFTER)
    assert scenario.grid.asked == [1, 2]
    del scenario.grid.nodes[1]
    assert scenario.registry.why_missing(9) == "its node is not connected"
    assert scenario.refresh() == {1: "its node went away"}
    assert (
        scenario.registry.node_of == {0: 2}
        and scenario.told[-1] == "client 0 is on node 2 now; before, it was on node 1"
    )
    scenario.grid.nodes[1] = here(0, "later")
    scenario.refresh()
    assert (
        scenario.registry.node_of == {0: 2}
        and "node 1 has to wait" in scenario.registry.rejected[1]
    )


def test_a_seat_is_kept_through_trouble_and_not_through_a_difference(monkeypatch):
    scenario = Scenario(monkeypatch, {1: here(0), 2: here(0)})
    scenario.grid.nodes[1] = fails(0)
    scenario.registry.recheck(0)
    scenario.refresh()
    scenario.refresh()
    assert scenario.registry.node_of == {} and scenario.grid.asked == [1, 2, 1]
    assert "the disk is not there" in scenario.registry.why_missing(0)
    scenario.grid.nodes[1] = differs(0, "later")
    scenario.refresh()
    scenario.refresh()
    assert scenario.registry.node_of == {0: 2} and set(scenario.registry.rejected) == {1}


def test_only_a_client_s_own_refused_node_makes_it_hopeless(monkeypatch):
    nodes = {
        1: here(0),
        2: here(0),
        3: differs(9),
        4: ("now", {"client": 7, "row": ROW}),
        5: ("now", "no client-id"),
    }
    scenario = Scenario(monkeypatch, nodes, clients=2)
    assert (
        set(scenario.registry.rejected) == {2, 3, 4, 5}
        and 1 not in scenario.registry.rejected_for_good
    )
    scenario.grid.nodes[6] = differs(1)
    scenario.refresh()
    assert 1 in scenario.registry.rejected_for_good


def test_a_client_s_seat_is_kept_for_its_key(monkeypatch):
    """Another key in its place is refused while it is away, and does not end
    anybody's wait for it."""
    scenario = Scenario(monkeypatch, {1: here(0), 2: here(1)}, clients=2, keys=ClientKeys(KEY))
    assert scenario.registry.node_of == {0: 1, 1: 2}
    del scenario.grid.nodes[1]
    scenario.grid.nodes[3] = here(0)
    scenario.refresh()
    assert scenario.registry.node_of == {1: 2} and not scenario.registry.rejected_for_good
    assert "client 0, which came with another key before" in scenario.registry.rejected[3]
    scenario.grid.nodes[3] = differs(0, "later")  # nor may it speak for that client
    scenario.refresh()
    assert not scenario.registry.rejected_for_good
    scenario.grid.nodes[1] = here(0, "back")
    scenario.refresh()
    assert scenario.registry.node_of == {0: 1, 1: 2}
    for _ in range(20):
        scenario.refresh(1000 * node_registry.RETRY_AFTER)
    assert scenario.grid.asked == [1, 2, 3, 3, 1]


def test_a_seat_is_kept_over_a_resume(monkeypatch):
    held = Scenario(monkeypatch, {1: here(0)}, keys=ClientKeys(KEY)).registry.keys.fingerprints
    again = Scenario(monkeypatch, {5: here(0)}, keys=ClientKeys(KEY, held))
    assert not again.registry.node_of and 5 in again.registry.rejected
    again = Scenario(monkeypatch, {5: here(0)}, keys=ClientKeys(FREE, held))  # its key was lost
    assert again.registry.node_of == {0: 5}
    assert Scenario(
        monkeypatch, {5: here(0)}, keys=ClientKeys(KEY, again.registry.keys.fingerprints)
    ).registry.node_of == {0: 5}


def test_a_registered_name_is_the_client(monkeypatch):
    """A node registered as client 1 is no other, and nobody else is client 1 while
    such a node is known."""
    nodes = {1: here(0), 2: here(0), 3: here(1)}
    names = {1: "client-1", 2: "client-0", 3: "lab"}
    scenario = Scenario(monkeypatch, nodes, clients=2, keys=ClientKeys(KEY), names=names)
    assert scenario.registry.node_of == {0: 2}
    assert "registered as client-1, and it says it is client 0" in scenario.registry.rejected[1]
    assert (
        "its key was not registered as client-1, and another was" in scenario.registry.rejected[3]
    )
    del scenario.grid.nodes[1]
    scenario.grid.nodes[3] = here(1, "later")
    scenario.refresh()
    assert scenario.registry.node_of == {0: 2}
    scenario.grid.names[7], scenario.grid.nodes[7] = (
        "client-1",
        here(1),
    )  # a new key, registered under the same name
    scenario.refresh()
    assert scenario.registry.node_of == {0: 2, 1: 7}


def test_a_node_leaves_a_seat_that_another_was_registered_for(monkeypatch):
    scenario = Scenario(monkeypatch, {1: here(0)}, keys=ClientKeys(KEY))
    assert scenario.registry.node_of == {0: 1}
    scenario.grid.names[2], scenario.grid.nodes[2] = "client-0", here(0)
    scenario.refresh()
    assert scenario.registry.node_of == {0: 2} and 1 in scenario.registry.rejected


def test_two_nodes_with_one_client_id_are_told_so(monkeypatch):
    scenario = Scenario(monkeypatch, {1: here(0), 2: here(0)}, keys=ClientKeys(KEY))
    assert "two nodes say they are client 0, and node 1 is: " in scenario.registry.rejected[2]
    assert "a client-id of its own in --node-config" in scenario.registry.rejected[2]
