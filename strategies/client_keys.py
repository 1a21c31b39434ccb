"""Which node may be which client: a node says itself which client it is, and this is what the
server knows of it besides.

A SuperLink that asks nodes for their keys (``--enable-supernode-auth``) vouches for two things: the
public key of a node, and the name under which an administrator registered that key. So

* a node registered as ``client-3`` is client 3 and no other, and while such a node is known
  nobody else is client 3;
* where no such name is known, the key a client first came with is its own for the whole run, also
  when the run is resumed: another key in its place is rejected while the client is away.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from fedpgp.digests import digest

_NAME = re.compile(r"client-(\d{1,9})")

KEY, FREE = "key", "free"
BY = (KEY, FREE)
"""Values of ``runtime.seats``."""


class NodeInfo(Protocol):
    """What Flower's grid tells of a node."""

    node_id: int
    public_key: bytes
    name: str


class ClientKeys:
    """The keys of the clients.

    Args:
        by: "key", or "free": whoever comes first (a SuperLink that asks for no keys, where a node
            has another one each time it is started).
        fingerprints: client -> fingerprint of its key, from a checkpoint.

    Attributes:
        fingerprints: the same, as of now.
    """

    def __init__(self, by: str = KEY, fingerprints: Mapping[int, str] | None = None):
        self.by, self.fingerprints = by, dict(fingerprints or {})
        self._named: set[int] = set()

    def note_names(self, nodes: Iterable[NodeInfo]) -> None:
        """Note the names of the nodes that are connected."""
        self._named |= {client for client in map(named, nodes) if client is not None}

    def objection(self, client: int, node: NodeInfo) -> str:
        """Return why a node is not this client; empty when nothing is known against it."""
        if self.by == FREE:
            return ""
        name = named(node)
        if name is not None:
            return (
                ""
                if name == client
                else f"its key was registered as client-{name}, and it says it is client {client}"
            )
        if client in self._named:
            return (
                f"it says it is client {client}, but its key was not registered as "
                f"client-{client}, and another was"
            )
        if self.fingerprints.get(client, fingerprint(node)) != fingerprint(node):
            return (
                f"it says it is client {client}, which came with another key before; when its "
                f"key was changed, register the new one with --name client-{client}, or resume "
                "with runtime.seats=free"
            )
        return ""

    def bind(self, client: int, node: NodeInfo) -> None:
        """Note the key of the node that is a client."""
        self.fingerprints[client] = fingerprint(node)


def named(node: NodeInfo) -> int | None:
    """Return the client that a node's key was registered as."""
    match = _NAME.fullmatch(node.name)
    return int(match[1]) if match else None


def fingerprint(node: NodeInfo) -> str:
    """Return the beginning of the SHA-256 of a node's public key."""
    return digest(node.public_key)[:32]
