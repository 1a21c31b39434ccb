"""Shortcuts through Ray and Flower: each works with the versions that are installed, and leaves no trace."""

import contextlib
import subprocess
import sys
import threading
from queue import Queue

import pytest
import ray
from flwr.server.superlink.fleet.vce import vce_api
from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor
from ray._private.node import Node

from strategies.grid import Bell
from strategies.shortcuts import bare, carried, hung_up, in_turn, replaced


class Mailbox:
    """What the engine needs of its store of messages."""

    def __init__(self):
        self.waiting: list[str] = []
        self.stored: list[str] = []
        self.looked = threading.Event()

    def get_message_ins(self, node_id: int, limit: int) -> list[str]:
        found, self.waiting = self.waiting, []
        self.looked.set()
        return found

    def store_message_res(self, message: str) -> None:
        self.stored.append(message)


class Stop(threading.Event):
    """A stop event that nobody may wait for: what waits is to wait for the bell."""

    def wait(self, timeout=None):
        raise AssertionError("the engine does not listen to the bell")


def test_the_engine_hears_the_bell_and_rings_it():
    bell, mailbox, stop, inbox, outbox = Bell(), Mailbox(), Stop(), Queue(), Queue()
    before = vce_api.add_messages_to_queue, vce_api.put_message_into_state
    with hung_up(bell):
        deliver = threading.Thread(target=vce_api.add_messages_to_queue, args=(mailbox, inbox, {1: 0}, stop))
        store = threading.Thread(target=vce_api.put_message_into_state, args=(mailbox, outbox, stop))
        deliver.start()
        store.start()
        try:
            assert mailbox.looked.wait(10)
            mailbox.waiting.append("train")
            bell.sent.set()
            assert inbox.get(timeout=10) == "train"
            outbox.put("reply")
            assert bell.answered.wait(10)
            assert mailbox.stored == ["reply"]
        finally:
            stop.set()
            bell.sent.set()
            deliver.join(10)
            store.join(10)
    assert not deliver.is_alive() and not store.is_alive()
    assert (vce_api.add_messages_to_queue, vce_api.put_message_into_state) == before


def test_a_reply_ends_the_waiting():
    bell = Bell()
    threading.Timer(0.05, bell.answered.set).start()
    bell.wait(600)
    assert not bell.answered.is_set()


def test_a_worker_that_fails_at_once_is_not_taken_again_before_the_others():
    def taken(messages: int) -> list[str]:
        pool = BasicActorPool.__new__(BasicActorPool)
        pool.pool, pool._future_to_actor = ["alive", "lost"], {}
        order = []
        for message in range(messages):
            pool.submit(lambda worker, *_: order.append(worker) or len(order), (None, message, "", None))
            pool.add_actor_back_to_pool(len(order))
        return order

    assert taken(3) == ["lost"] * 3, "Flower does it by itself now"
    with in_turn():
        assert taken(4) == ["lost", "alive", "lost", "alive"]
    assert taken(2) == ["lost"] * 2


def test_functions_are_replaced_inside_the_block_alone_and_missing_ones_left_alone():
    class Engine:
        def start(self):
            return "whole"

    shorter = {"start": lambda start: lambda engine: "not " + start(engine), "gone": lambda gone: gone}
    with pytest.raises(KeyError), replaced(Engine, **shorter):
        assert Engine().start() == "not whole"
        assert not hasattr(Engine, "gone")
        raise KeyError
    assert Engine().start() == "whole"


def test_ray_still_has_the_parts_that_are_left_out():
    parts = ("start_monitor", "start_log_monitor", "start_api_server")
    before = [getattr(Node, part) for part in parts]
    with bare():
        node = Node.__new__(Node)
        node.start_monitor()
        node.start_log_monitor()
        node.start_api_server(include_dashboard=False, raise_on_failure=False)
        assert node.webui_url is None
    assert [getattr(Node, part) for part in parts] == before


def test_a_worker_does_not_import_the_whole_engine(tmp_path):
    asked = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); print('flwr.simulation' in sys.modules)"
    for block, imported in ((contextlib.nullcontext(), "True"), (carried(), "False")):
        with block:
            (tmp_path / "actor").write_bytes(ray.cloudpickle.dumps(ClientAppActor))
        answer = subprocess.run([sys.executable, "-c", asked, tmp_path / "actor"], capture_output=True, text=True)
        assert answer.stdout.strip() == imported, answer.stderr
