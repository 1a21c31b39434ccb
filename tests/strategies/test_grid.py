"""The cohort grid: any Flower strategy sees logical clients, and gets what it would get
from a node for each."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    Krum,
)
from flwr.supercore.task_identity import TaskIdentity

from clients.messages import Job, count_bytes, pack_reply, unpack
from strategies.aggregation.base import STRATEGIES, StrategyContext
from strategies.exchange import Interrupted
from strategies.flower_strategies import make_strategy
from strategies.grid import CohortGrid, balance, readable
from strategies.local_grid import with_id

CLIENTS = 10
START = np.random.default_rng(0).normal(size=(3, 4))


def train_one(client: int, records) -> RecordDict:
    """A client's answer: real arithmetic on what it was sent."""
    arrays = next(record for record in records.values() if isinstance(record, ArrayRecord))
    noise = np.random.default_rng(client).normal(size=(3, 4))
    update = ArrayRecord(
        {"p": Array(arrays["p"].numpy() + noise), "q": Array(arrays["q"].numpy() * (client + 1))}
    )
    return RecordDict(
        {
            "arrays": update,
            "metrics": MetricRecord({"num-examples": client + 1, "loss": float(client)}),
        }
    )


class Nodes(Grid):
    """Nodes in this process. ``cohort``: they speak the packed format; else one logical client
    a node, as Flower has it.
    """

    def __init__(self, count: int, *, cohort: bool, broken=(), silent=()):
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.count, self.cohort, self.broken, self.silent = count, cohort, set(broken), set(silent)
        self.waiting: dict[str, Message] = {}
        self.sent: list[Message] = []

    def get_node_ids(self):
        return [100 + i for i in range(self.count)] if self.cohort else list(range(self.count))

    def push_messages(self, messages):
        named = [with_id(message) for message in messages]
        self.sent += named
        self.waiting |= {message.metadata.message_id: message for message in named}
        return [message.metadata.message_id for message in named]

    def pull_messages(self, message_ids):
        ready = [self.waiting[i] for i in message_ids if i in self.waiting]
        ready = [m for m in ready if m.metadata.dst_node_id not in self.silent]
        for message in ready:
            del self.waiting[message.metadata.message_id]
        return [self.answer(message) for message in reversed(ready)]  # in any order

    def answer(self, message):
        node = message.metadata.dst_node_id
        if node in self.broken:
            return Message(Error(3, "its worker died"), reply_to=message)
        if not self.cohort:
            return Message(train_one(node, message.content), reply_to=message)
        own = unpack(message.content, Job.of(message.content).clients)
        replies = {
            client: train_one(client, records) for client, records in own.items() if client != 13
        }
        return Message(
            pack_reply(
                replies,
                {13: "fell over"},
                {"seconds": 1.0, "process": "x", "rss_mb": 1.0, "clients": 1, "kept": []},
            ),
            reply_to=message,
        )

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run): ...

    run = None

    def create_message(self, *args, **kwargs): ...


def cohort_grid(nodes: int = 3, **options) -> CohortGrid:
    inner = {key: options.pop(key) for key in ("broken", "silent") if key in options}
    return CohortGrid(
        Nodes(nodes, cohort=True, **inner), CLIENTS, Job("run", 1, "{}", "/p", 1), **options
    )


def dp():
    return DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.1, clipping_norm=2.0, num_sampled_clients=CLIENTS
    )


WRAPPED_AND_PLAIN = {
    "fedavg": FedAvg,
    "fedadam": FedAdam,
    "fedmedian": FedMedian,
    "krum": lambda: Krum(num_malicious_nodes=2),
    "dp": dp,
}
CONTEXT = StrategyContext(class_embeddings=lambda shared: shared["p"].reshape(2, -1))
WRAPPED_AND_PLAIN |= {
    f"plain {name}": (lambda name=name: make_strategy(name, {}, CONTEXT)) for name in STRATEGIES
}


@pytest.mark.parametrize("name", WRAPPED_AND_PLAIN)
@pytest.mark.parametrize("nodes", [1, 3, 10])
def test_any_strategy_gives_what_it_gives_without_packing(name, nodes):
    """Unchanged strategies, two rounds: on the cohort grid, and on a grid with a real
    node for each client."""
    results = []
    for grid in (Nodes(CLIENTS, cohort=False), cohort_grid(nodes)):
        strategy, arrays = (
            WRAPPED_AND_PLAIN[name](),
            ArrayRecord({"p": Array(START), "q": Array(np.ones(2))}),
        )
        for server_round in (1, 2):
            np.random.seed(server_round)  # the noise of the privacy wrapper
            messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
            replies = sorted(
                grid.send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id
            )
            arrays, _ = strategy.aggregate_train(server_round, replies)
        results.append({key: array.numpy() for key, array in arrays.items()})
    plain, packed = results
    for key in plain:
        np.testing.assert_array_equal(plain[key], packed[key])


def messages_for(grid, contents):
    return [
        Message(content, dst_node_id=client, message_type="train")
        for client, content in contents.items()
    ]


def content(value: float = 0.0) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"p": Array(START + value), "q": Array(np.ones(2))})})


def test_one_message_a_node_and_one_payload_for_all():
    grid, shared = cohort_grid(3), content()
    replies = grid.send_and_receive(
        messages_for(grid, {client: shared for client in range(CLIENTS)})
    )
    assert [reply.metadata.src_node_id for reply in replies] == list(range(CLIENTS))
    assert len(grid.inner.sent) == 3
    traffic = grid.exchange.traffic
    assert traffic.down == CLIENTS * count_bytes([shared])
    assert traffic.up == sum(count_bytes([reply.content]) for reply in replies)
    assert 3 * count_bytes([shared]) < traffic.wire_down < traffic.down


def test_each_client_gets_its_own_payload():
    grid = cohort_grid(2)
    replies = grid.send_and_receive(
        messages_for(grid, {client: content(client) for client in range(CLIENTS)})
    )
    for client, reply in enumerate(replies):
        np.testing.assert_array_equal(
            reply.content["arrays"]["p"].numpy(),
            train_one(client, content(client))["arrays"]["p"].numpy(),
        )


def test_a_dead_node_costs_its_clients_only():
    grid = cohort_grid(2, broken=[100])
    import strategies.grid

    pause, strategies.grid.RESTART_PAUSE = strategies.grid.RESTART_PAUSE, 0.01
    try:
        replies = grid.send_and_receive(
            messages_for(grid, {client: content() for client in range(CLIENTS)}), timeout=20
        )
    finally:
        strategies.grid.RESTART_PAUSE = pause
    failed = [reply for reply in replies if reply.has_error()]
    assert len(replies) == CLIENTS and len(failed) == 5
    for reply in failed:
        client = reply.metadata.src_node_id
        assert reply.error.reason == f"client {client}: its worker died"
    alone = [Job.of(message.content).clients for message in grid.inner.sent[2:]]
    assert (
        all(len(clients) == 1 for clients in alone) and len(alone) == 5
    )  # a second try each, alone


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (RecordDict(), "its reply cannot be read (KeyError: 'node')"),
        (
            pack_reply({}, {}, {"seconds": "long", "rss_mb": 1.0, "clients": 1, "kept": []}),
            "metric seconds is 'long'",
        ),
        (
            pack_reply(
                {}, {}, {"seconds": 1.0, "rss_mb": 1.0, "gpu_mb": "much", "clients": 1, "kept": []}
            ),
            "metric gpu_mb is 'much'",
        ),
    ],
)
def test_a_reply_that_cannot_be_read_costs_its_clients_only(reply, reason):
    class Stranger(Nodes):
        def answer(self, message):
            return (
                Message(reply, reply_to=message)
                if message.metadata.dst_node_id == 100
                else super().answer(message)
            )

    grid = CohortGrid(Stranger(2, cohort=True), CLIENTS, Job("run", 1, "", "/p", 1), nodes=2)
    content = RecordDict({"arrays": ArrayRecord({"p": Array(START), "q": Array(START)})})
    replies = grid.send_and_receive(
        [Message(content, client, "train") for client in range(CLIENTS)]
    )
    said = [reply.error.reason for reply in replies if reply.has_error()]
    assert len(said) == CLIENTS // 2 and all(reason in text for text in said)


def test_a_node_speaks_for_its_own_clients_only():
    class Liar(Nodes):
        def answer(self, message):
            own = unpack(message.content, Job.of(message.content).clients)
            replies = {
                client: train_one(client, next(iter(own.values()))) for client in range(CLIENTS)
            }
            account = {
                "seconds": 1.0,
                "process": "x",
                "rss_mb": 1.0,
                "clients": 1,
                "kept": list(range(CLIENTS)),
            }
            return Message(pack_reply(replies, {}, account), reply_to=message)

    grid = CohortGrid(Liar(1, cohort=True), CLIENTS, Job("run", 1, "", "/p", 1))
    grid.send_and_receive(messages_for(grid, {3: content()}))
    assert grid.exchange.kept == {3}
    assert grid.exchange.traffic.up < grid.exchange.traffic.wire_up / 5


def test_a_silent_node_is_given_up_in_time():
    grid = cohort_grid(2, silent=[101])
    replies = grid.send_and_receive(
        messages_for(grid, {client: content() for client in range(CLIENTS)}), timeout=0.3
    )
    failed = [reply for reply in replies if reply.has_error()]
    assert len(replies) == CLIENTS and len(failed) == 5
    assert all(
        "no reply within 0.3 seconds (runtime.round_timeout)" in reply.error.reason
        for reply in failed
    )


def test_a_failing_client_is_named():
    grid = CohortGrid(Nodes(1, cohort=True), 14, Job("run", 1, "{}", "/p", 1))
    replies = grid.send_and_receive(messages_for(grid, {12: content(), 13: content()}))
    assert not replies[0].has_error() and replies[1].error.reason == "client 13: fell over"


def test_stop_ends_the_waiting():
    stop = threading.Event()
    grid = cohort_grid(2, silent=[100, 101], stop=stop)
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Interrupted):
        grid.send_and_receive(messages_for(grid, {0: content()}))


def test_clients_that_live_somewhere_are_asked_there():
    registry = SimpleNamespace(
        node_of={client: 100 + (client + 3) % CLIENTS for client in range(CLIENTS)},
        refresh=dict,
        updates_only=False,
    )
    grid = cohort_grid(CLIENTS, registry=registry)
    grid.send_and_receive(messages_for(grid, {client: content() for client in range(CLIENTS)}))
    assert {m.metadata.dst_node_id: Job.of(m.content).clients for m in grid.inner.sent} == {
        100 + (client + 3) % CLIENTS: (client,) for client in range(CLIENTS)
    }


def test_the_assignment_is_balanced_and_deterministic():
    work = [9, 1, 1, 1, 5, 4]
    assert (
        balance(range(6), work, 2) == [[0, 1, 3], [2, 4, 5]] == balance([5, 4, 3, 2, 1, 0], work, 2)
    )
    assert balance([0, 1], work, 5) == [[0], [1]]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "<class 'x.ClientAppException'>:<'\nException ClientAppException occurred. Message: "
            "no weights'>",
            "no weights",
        ),
        ("ValueError: bad", "ValueError: bad"),
        ("", "failed without saying why"),
    ],
)
def test_reasons_are_readable(reason, said):
    assert readable(reason) == said
