"""What clients are asked beside training and evaluation: what they have, and samples. In a
deployment the first is waited for until their nodes are there."""

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedpgp.errors import FedPGPError
from strategies.exchange import Exchange, Interrupted
from strategies.json_replies import ROW_BYTES, SAMPLES_BYTES, json_reply, read_row, read_samples
from strategies.membership import not_yet_there
from strategies.node_registry import NodeRegistry
from strategies.observer import Rows
from strategies.requests import Replies, Request
from strategies.run_state import RunState

RETURN_PATIENCE = 60.0
"""Seconds that a resumed run, or a round, waits for nodes that are on their way."""

Ask = Callable[[Request, RunState], Replies]


def set_up_nodes(ask: Ask, state: RunState, table: Rows, nodes: int) -> tuple[Rows, Exchange]:
    """Have every node of a simulation load its data and encode its images: one client of each is
    asked for its row of the table, which has to be the server's.

    Args:
        ask: sends a request.
        state: of the run.
        table: the clients' rows, as JSON has them.
        nodes: number of nodes.

    Returns:
        (the rows, safe to print; what it cost).
    """

    def check(client: int, content: RecordDict) -> None:
        read_row(json_reply(content, ROW_BYTES), client, table)

    clients = list(range(min(nodes, len(table))))
    content = RecordDict({"config": ConfigRecord()})
    replies = ask(_query(state, clients, content, check, len(clients), "clients"), state)
    return [read_row(row, c, table) for c, row in enumerate(table)], replies.exchange


def ask_samples(
    ask: Ask, state: RunState, table: Rows, per_client: int = 6, most: int = 8
) -> tuple[Rows, Exchange]:
    """Ask for images with predictions: the first client of each domain, or the first few clients.

    Args:
        ask: sends a request.
        state: of the run.
        table: the clients' rows.
        per_client: images of each.
        most: clients.

    Returns:
        (the samples, what it cost).
    """
    first: dict[object, int] = {}
    for client, row in enumerate(table):
        if row["test_images"]:
            first.setdefault(row["domain"] if row["domain"] is not None else client, client)
    clients = sorted(first.values())[:most]
    if not clients:
        return [], Exchange()
    samples: dict[int, Rows] = {}

    def check(client: int, content: RecordDict) -> None:
        samples[client] = read_samples(json_reply(content, SAMPLES_BYTES), client)

    config = ConfigRecord({"per-client": per_client})
    content = RecordDict({"config": config, "arrays": state.arrays()})
    replies = ask(_query(state, clients, content, check, 0, "samples"), state)
    return [sample for c in sorted(replies.good) for sample in samples[c]], replies.exchange


def _query(
    state: RunState,
    clients: Sequence[int],
    content: RecordDict,
    check: Callable[[int, RecordDict], None],
    need: int,
    ask: str,
) -> Request:
    """Return the same question to each of these clients."""

    def configure() -> list[Message]:
        return [
            Message(content, dst_node_id=client, message_type=MessageType.QUERY)
            for client in clients
        ]

    return Request(state.server_round, clients, configure, check, need, ask)


def wait_for_clients(
    registry: NodeRegistry,
    clients: int,
    table: Rows,
    timeout: float | None,
    stop: threading.Event,
    progress: Callable[[int, int, str], None],
    left: Collection[int] = (),
) -> Rows:
    """Wait for the clients' nodes; return every client's row of the table.

    A new run needs all of them; it is refused early when only those are missing whose nodes cannot
    take part. A resumed one needs no more than a round does: who is missing has its row from the
    checkpoint, and who was admitted since has that of a client without images.

    Args:
        registry: of the nodes.
        clients: number of clients.
        table: the rows of a resumed run; empty in a new one.
        timeout: seconds to wait at most; None waits without end.
        stop: ends the wait.
        progress: called with (clients that are there, clients, what is counted).
        left: clients that nobody waits for.

    Raises:
        FedPGPError: clients of a new run are missing.
        Interrupted: ``stop`` was set.
    """
    known = {row["id"]: row for row in table}
    rows = {c: known.get(c) or not_yet_there(c) for c in range(clients) if known}
    patience = RETURN_PATIENCE if rows else math.inf
    end = time.monotonic() + min(patience, timeout or math.inf)
    here = 0
    registry.refresh()
    wanted = [client for client in range(clients) if client not in left]
    while missing := [client for client in wanted if client not in registry.rows]:
        if stop.is_set():
            raise Interrupted
        if len(registry.rows) > here:
            here = len(registry.rows)
            progress(here, clients, "clients that are there")
        hopeless = not registry.waiting and registry.rejected_for_good.issuperset(missing)
        if time.monotonic() > end or hopeless:
            if not rows:
                reasons = [_not_there(missing, registry.waiting), *registry.rejected.values()]
                raise FedPGPError("; ".join(reasons))
            registry.stop_waiting()
            break
        time.sleep(0.2)
        registry.refresh()
    return [registry.rows.get(client) or rows[client] for client in range(clients)]


def wait_for_returning(registry: NodeRegistry, stop: threading.Event) -> None:
    """Wait until nodes that have just come (back) have answered the handshake, so that the next
    round has them: once, and no more before they answer."""
    end = time.monotonic() + RETURN_PATIENCE
    registry.refresh()
    while registry.waiting and not stop.is_set():
        if time.monotonic() > end:
            registry.stop_waiting()
            break
        time.sleep(0.2)
        registry.refresh()


def without_figures(table: Sequence[Mapping], least: int) -> str:
    """Say which clients have too few images to tell a figure (:mod:`clients.disclosure`); an empty
    text where there are none.

    Args:
        table: rows of clients whose images are their own.
        least: test images that a client tells figures from (``runtime.min_report``).
    """
    few = [row for row in table if row["test_images"] < least]
    if not few:
        return ""
    return (
        f"{len(few)} of {len(table)} clients tell no figures: they have fewer than {least} test "
        f"images (runtime.min_report), client {few[0]['id']} {few[0]['test_images']}"
    )


def _not_there(clients: Sequence[int], waiting: int) -> str:
    """Return what to say of clients that were waited for in vain."""
    text = f"the nodes of clients {', '.join(map(str, clients))} are not there"
    if waiting:
        text += (
            f"; {waiting} that are connected did not answer yet: if they are still encoding "
            "their images, give the next run more seconds (runtime.round_timeout)"
        )
    return text
