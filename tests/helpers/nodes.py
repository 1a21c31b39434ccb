"""SuperNodes in this process: real ClientApps with configurations of their own, behind the
interface of Flower's grid.

Every message goes through Flower's own serialization, and what the nodes send is kept, byte by
byte.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from strategies.local_grid import with_id


class Hangs(Exception):
    """The node does not answer this message yet; it is asked again at the next look."""


class Nodes(Grid):
    """One node for each configuration.

    Args:
        app: the ClientApp of all.
        configs: ``--node-config`` of each node.
        before: called with (nodes, node, message) when a node takes a message up; it may call
            :meth:`leave` or :meth:`restart`, raise what the client's code would, or :class:`Hangs`.
    """

    def __init__(
        self,
        app: ClientApp,
        configs: list[Mapping[str, object]],
        before: Callable[["Nodes", int, Message], None] = lambda nodes, node, message: None,
    ):
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.app, self.configs, self.before = app, configs, before
        self.since = {node: 1 for node in range(len(configs))}
        self.waiting: dict[str, Message] = {}
        self.names: dict[int, str] = {}  # under which their keys are registered
        self.sent: list[bytes] = []  # what the nodes sent
        self.replies: list[RecordDict] = []
        self.received: list[bytes] = []

    def leave(self, node: int) -> None:
        """The node goes, with every message it has."""
        self.since.pop(node, None)
        self.waiting = {id: m for id, m in self.waiting.items() if m.metadata.dst_node_id != node}

    def restart(self, node: int) -> None:
        """The node loses every message it has, and is back."""
        before = self.since.get(node, 0)
        self.leave(node)
        self.since[node] = before + 1

    def get_nodes(self):
        return [
            SimpleNamespace(
                node_id=node,
                last_activated_at=str(since),
                public_key=b"key %d" % node,
                name=self.names.get(node, ""),
            )
            for node, since in self.since.items()
        ]

    def get_node_ids(self):
        return list(self.since)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            if message.metadata.dst_node_id in self.since:
                named = with_id(message)
                ids.append(named.metadata.message_id)
                self.waiting[ids[-1]] = named
            else:
                ids.append("")
        return ids

    def pull_messages(self, message_ids):
        replies = []
        for id in message_ids:
            if id not in self.waiting:
                continue
            message = self.waiting[id]
            node = message.metadata.dst_node_id
            try:
                self.before(self, node, message)
                if self.waiting.pop(id, None) is None:
                    continue
                context = Context(1, node, {"inline": True, **self.configs[node]}, RecordDict(), {})
                asked = Message(_through(message.content, self.received), metadata=message.metadata)
                reply = self.app(asked, context)
                self.replies.append(reply.content)
                replies.append(Message(_through(reply.content, self.sent), reply_to=message))
            except Hangs:
                continue
            except Exception as error:
                self.waiting.pop(id, None)
                replies.append(Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message))
        return replies

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def set_run(self, run): ...

    run = None

    def create_message(self, *args, **kwargs): ...


def _through(content: RecordDict, record: list[bytes]) -> RecordDict:
    """A content as it arrives on the other side; the bytes that travel are added to ``record``."""
    parts = {id: part.deflate() for id, part in get_all_nested_objects(content).items()}
    record += parts.values()
    return inflate_object_from_contents(content.object_id, parts)
