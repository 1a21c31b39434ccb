"""A run in this process whose messages are recorded: what an audit looks at."""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType

from clients.client_app import client_app
from clients.messages import Job, full
from clients.private_state import PrivateStore
from experiments.attempt import for_clients
from experiments.callbacks.base import Callback
from experiments.runtimes.inline import InlineGrid
from fedpgp.config import Config
from fedpgp.federation import Federation
from strategies.server import Server
from strategies.wrappers import configured_strategy

Tensors = dict[str, np.ndarray]


@dataclass
class Recorded:
    """What there is to see of a run, in the order of its rounds.

    Attributes:
        shared: the global tensors before round 1, and after each round.
        updates: of each round: client -> the tensors that it sent, as they crossed the wire.
        server_state: what the method's server knows after the last round.
        load_state: client -> its private tensors after the last round it took part in.
    """

    shared: list[Tensors] = field(default_factory=list)
    updates: list[dict[int, Tensors]] = field(default_factory=list)
    server_state: Tensors = field(default_factory=dict)
    load_state: Callable = lambda client: None


def recorded_run(config: Mapping, federation: Federation, folder: Path) -> Recorded:
    """Run a configuration inline, and return what was to be seen of it.

    Args:
        config: resolved; its runtime is inline.
        federation: of this configuration, for server and clients.
        folder: for private states and checkpoints; empty.

    Raises:
        FedPGPError: what a run raises.
    """
    store = PrivateStore(folder / "private", uuid.uuid4().hex, 1)
    store.claim()
    name = store.give_configuration(json.dumps(for_clients(config)))
    job = Job(store.run, store.attempt, name, str(store.folder.resolve()), 0)
    strategy, found = configured_strategy(Config.of(config)), Recorded()
    recorder = _Recorder(found)
    recorder.server = server = Server(config, federation, strategy, folder, job, recorder)
    found.shared.append(dict(server.state.shared))
    server.try_run(_RecordingGrid(client_app(lambda text: federation), found))
    if server.failure is not None:
        raise server.failure
    committed = server.state.committed
    found.server_state = dict(server.state.server_state)
    found.load_state = lambda client: store.load(client, int(committed[client]))
    return found


class _Recorder(Callback):
    """Keeps the global tensors after each round."""

    def __init__(self, found: Recorded):
        self._found = found
        self.server: Server | None = None

    def trained(self, record: dict) -> None:
        self._found.shared.append(dict(self.server.state.shared))


class _RecordingGrid(InlineGrid):
    """Keeps the tensors of each round's replies."""

    def __init__(self, app, found: Recorded):
        super().__init__(app)
        self._found = found

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.message_type == MessageType.TRAIN and not reply.has_error():
                self._keep(reply)
        return replies

    def _keep(self, reply: Message) -> None:
        done = len(self._found.shared)  # rounds, and the start
        while len(self._found.updates) < done:
            self._found.updates.append({})
        for name, record in reply.content.items():
            client, _, what = name.partition("/")
            if what == "arrays" and isinstance(record, ArrayRecord):
                tensors = {n: array.numpy() for n, array in full(record).items()}
                self._found.updates[-1][int(client)] = tensors
