"""The clients of a run as the server sees them: their table, and how they are asked."""

import json
import threading
from collections.abc import Mapping
from dataclasses import replace

from flwr.serverapp import Grid

from clients.disclosure import NO_FIGURES, updates_only
from clients.messages import Job
from clients.node_config import compatibility
from fedpgp.client_table import client_table, train_images_at
from fedpgp.config import Config
from fedpgp.private_data import images_arrive
from strategies import queries
from strategies.client_keys import ClientKeys
from strategies.exchange import Exchange
from strategies.grid import CohortGrid
from strategies.membership import not_yet_there
from strategies.node_registry import NodeRegistry
from strategies.observer import Observer, Rows
from strategies.requests import Replies, Request, Requester
from strategies.run_state import RunState

NOBODY = {"test_images": 0}
"""The row of a client that shows no samples."""


class ConnectedClients:
    """The clients behind a grid of Flower's.

    Args:
        inner: Flower's own grid.
        federation: the server's :class:`fedpgp.federation.Federation`.
        job: what every message carries.
        config: of the run.
        observer: who is told.
        stop: set when the person wants to stop.
        configuration: what the nodes of a deployment are sent (JSON text); None in a simulation.
        nodes: number of nodes, in a simulation.
        saved: what :meth:`saved` returned, of a run that is resumed.

    Attributes:
        grid: a grid whose nodes are the clients.
        table: the clients' rows.
        members: number of clients that have not left.
    """

    def __init__(
        self,
        inner: Grid,
        federation,
        job: Job,
        config: Config,
        observer: Observer,
        *,
        stop: threading.Event,
        configuration: str | None,
        nodes: int,
        saved: Mapping,
    ):
        runtime = config.runtime
        self._runtime, self._observer, self._stop = runtime, observer, stop
        self._left = frozenset(config.left)
        self._number, self._nodes = federation.num_clients, nodes
        self.members = self._number - len(self._left)
        self._split = federation.federated_split
        self._private_data = self._split.private_data
        deployed = configuration is not None
        self._images_arrive = deployed and images_arrive(config)
        self._updates_only = updates_only(config.privacy, deployed=deployed)
        self._registry: NodeRegistry | None = None
        self.table: Rows = saved.get("table", [])
        if configuration is not None:
            keys = {int(client): key for client, key in saved.get("seats", {}).items()}
            self._registry = NodeRegistry(
                inner,
                self._number,
                replace(job, ask="handshake"),
                configuration,
                compatibility(federation),
                None if self._private_data else client_table(self._split),
                observer.warn,
                ClientKeys(runtime.seats, keys),
                updates_only=self._updates_only,
                left=self._left,
            )
        self.grid = CohortGrid(
            inner,
            self._number,
            job,
            registry=self._registry,
            nodes=nodes,
            stop=stop,
            # Seconds between two looks; over a network they cost something.
            poll=0.1 if self._registry is None else 0.5,
        )
        self._requester = Requester(
            self.grid, job, runtime, observer, federation.server.download_for
        )

    def set_up(self, state: RunState) -> Exchange:
        """Learn what every client has; return what that cost.

        Raises:
            FedPGPError: clients are missing.
            Interrupted: the person asked to stop.
        """
        self._observer.stage("setting up the clients, encoding their images")
        exchange = Exchange()
        if self._registry is None:
            table = json.loads(json.dumps(client_table(self._split)))  # as a node tells it
            self.table, exchange = queries.set_up_nodes(self.ask, state, table, self._nodes)
        else:
            self.table = queries.wait_for_clients(
                self._registry,
                self._number,
                self.table,
                self._runtime.round_timeout,
                self._stop,
                self._observer.progress,
                self._left,
            )
            for client in self._absent():
                self._observer.warn(
                    f"client {client} is not there yet; it takes part once its node comes"
                )
        self.grid.work = [max(1, row["train_images"] or 1) for row in self.table]
        self._observer.clients(self.table)
        return exchange

    def warn_without_figures(self) -> None:
        """Warn of clients that tell no figure: with privacy, or with too few images of their
        own."""
        least = self._runtime.min_report
        if self._updates_only:
            self._observer.warn(NO_FIGURES)
        elif self._private_data and (said := queries.without_figures(self.table, least)):
            self._observer.warn(said)

    def ask(self, request: Request, state: RunState) -> Replies:
        """Ask clients, those too whose nodes have just come back (:meth:`Requester.ask`)."""
        if self._registry is not None:
            queries.wait_for_returning(self._registry, self._stop)
        return self._requester.ask(request, state)

    def ask_updates(self, request: Request, state: RunState) -> Replies:
        """Ask clients to train; where their images arrive, note how many they have now."""
        replies = self.ask(request, state)
        if self._images_arrive and not self._updates_only:
            for client, reply in replies.good.items():
                images = int(reply.content["metrics"]["num-examples"])
                self.table[client]["train_images"] = images
        return replies

    def current_table(self) -> Rows:
        """Return the clients' rows, also of those that were admitted and have come by now. Where
        images arrive, those that had none to train on are asked again: nobody else would draw
        them."""
        without = self._absent()
        if self._images_arrive:
            without = [c for c, row in enumerate(self.table) if row["train_images"] == 0]
            for client in without:
                self._registry.recheck(client)
        if not without:
            return self.table
        queries.wait_for_returning(self._registry, self._stop)
        for client in without:
            self.table[client] |= self._registry.rows.get(client, {})
        return self.table

    def _absent(self) -> list[int]:
        """Clients that were admitted and whose node has not come yet."""
        if self._registry is None:
            return []
        never = [c for c, row in enumerate(self.table) if row == not_yet_there(c)]
        return [c for c in never if c not in self._registry.rows and c not in self._left]

    def ask_samples(self, state: RunState) -> tuple[Rows, Exchange]:
        """Ask for images with answers; nobody, where clients tell nothing but their updates."""
        table = [row if row["id"] not in self._left else NOBODY for row in self.table]
        table = [] if self._updates_only else table
        return queries.ask_samples(self.ask, state, table)

    def train_images(self, client: int, server_round: int) -> int | None:
        """Return how many images a client trains on in a round; where they are private, what its
        node said when it last came, None where that is nothing, or where more may have come."""
        if self._images_arrive:
            return None
        if self._registry is not None and self._private_data:
            self.table[client] = self._registry.rows.get(client, self.table[client])
        return train_images_at(self.table[client], server_round)

    def saved(self) -> dict:
        """Return what a checkpoint keeps of the clients of a deployment: their rows, and their keys
        by a name of earlier versions."""
        if self._registry is None:
            return {"table": [], "seats": {}}
        return {"table": self.table, "seats": self._registry.keys.fingerprints}
