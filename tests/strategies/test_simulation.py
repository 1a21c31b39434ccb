"""The bell between the server and Flower's simulation engine: heard and rung by the engine that is installed."""

import threading
from queue import Queue

from flwr.server.superlink.fleet.vce import vce_api
from flwr.simulation.ray_transport.ray_actor import BasicActorPool

from strategies.grid import Bell
from strategies.simulation import hung_up, in_turn


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
