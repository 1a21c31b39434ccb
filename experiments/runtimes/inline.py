"""runtime=inline: ServerApp and ClientApp in one process, without Ray. For debugging,
tests and small tables."""

import secrets
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from strategies.local_grid import LocalGrid, with_id

NODE = 1
"""Id of the only node."""


class InlineGrid(LocalGrid):
    """One node whose ClientApp is called when its reply is asked for.

    Attributes:
        working: True while client code runs (then Ctrl-C may break in).
    """

    def __init__(self, app: ClientApp):
        self.app, self.working = app, False
        self._run_id = secrets.randbits(63)
        # Flower's own runtimes set who is speaking; without one it is done here.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = self._run_id, 1, NODE
        self._context = Context(self._run_id, NODE, {"inline": True}, RecordDict(), {})
        self._waiting: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return [NODE]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        named = {message.metadata.message_id: message for message in map(with_id, messages)}
        self._waiting |= named
        return list(named)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._work(self._waiting.pop(i)) for i in message_ids if i in self._waiting]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _work(self, message: Message) -> Message:
        self.working = True
        try:
            return self.app(message, self._context)
        except Exception as error:
            return Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)
        finally:
            self.working = False


def run_inline(server_app: ServerApp, grid: InlineGrid) -> None:
    """Run a ServerApp on the inline grid, in this thread."""
    server_app(grid, Context(0, 0, {}, RecordDict(), {}))
