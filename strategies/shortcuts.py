"""Shortcuts through the start of Ray and through Flower's simulation engine, for which neither has a setting.

Each replaces functions of theirs for as long as its block runs. They are those of Flower 1.41 and of the one Ray that
it asks for (2.55.1); tests say so where another version has them no more.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import Message

from strategies.grid import Bell

START = {
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    "RAY_enable_worker_prestart": "1",
}
"""Environment of a Ray that starts here: it looks for its own parts every 20 ms, where by itself it would wait a whole
second for the first, and starts the workers' processes meanwhile."""


@contextmanager
def replaced(owner: object, **makers: Callable[[Callable], Callable]) -> Iterator[None]:
    """Functions of a class or module replaced inside the block, by what is made from the function there was.
    Missing ones are left alone."""
    whole = {name: getattr(owner, name) for name in makers if hasattr(owner, name)}
    try:
        for name, function in whole.items():
            setattr(owner, name, makers[name](function))
        yield
    finally:
        for name, function in whole.items():
            setattr(owner, name, function)


# Ray. -----------------------------------------------------------------------------------------------------------------


@contextmanager
def bare() -> Iterator[None]:
    """Has a Ray that starts here leave out what a simulation has no use for: autoscaler, log monitor and the
    dashboard's server, which ``include_dashboard=False`` only makes smaller. They take a second, and one at the end.
    """
    from ray._private.node import Node

    with replaced(
        Node,
        start_monitor=lambda start: lambda node, *given, **named: None,
        start_log_monitor=lambda start: lambda node, *given, **named: None,
        start_api_server=lambda start: lambda node, *given, **named: setattr(node, "_webui_url", None),
    ):
        yield


# Flower's engine on Ray. ----------------------------------------------------------------------------------------------


@contextmanager
def carried() -> Iterator[None]:
    """Sends the class of Flower's workers along. By its name alone, a worker would import all of ``flwr.simulation``,
    the server's database and web framework with it, before it does anything.
    """
    from flwr.simulation.ray_transport import ray_actor
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ray_actor)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(ray_actor)


@contextmanager
def hung_up(bell: Bell) -> Iterator[None]:
    """Has both sides of the engine ring, and heed, a bell. By itself each looks for messages every 0.1 seconds only,
    which would be lost twice a round.
    """
    from flwr.server.superlink.fleet.vce import vce_api

    with replaced(
        vce_api,
        add_messages_to_queue=lambda deliver: lambda *given: deliver(*given[:-1], _Stop(given[-1], bell.sent)),
        put_message_into_state=lambda store: lambda state, *given: store(_State(state, bell.answered), *given),
    ):
        yield


class _Stop:
    """The engine's stop event, whose wait also ends when there is something to deliver."""

    def __init__(self, stop: threading.Event, sent: threading.Event):
        self.is_set, self._sent = stop.is_set, sent

    def wait(self, timeout: float) -> bool:
        self._sent.wait(timeout)
        self._sent.clear()
        return self.is_set()


class _State:
    """The engine's store of messages, that tells when a reply is in it."""

    def __init__(self, state, answered: threading.Event):
        self._state, self._answered = state, answered

    def store_message_res(self, message: Message) -> object:
        stored = self._state.store_message_res(message)
        self._answered.set()
        return stored


@contextmanager
def in_turn() -> Iterator[None]:
    """Has the engine's pool hand out its workers in turn. By itself it takes the one that came back last: where a
    machine is lost, its worker again and again, which fails at once and waits for a restart that may never come.
    """
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    def back_of_the_queue(pool: BasicActorPool, future: object) -> None:
        pool.pool.insert(0, pool._future_to_actor.pop(future))

    with replaced(BasicActorPool, add_actor_back_to_pool=lambda put_back: back_of_the_queue):
        yield
