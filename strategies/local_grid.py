"""What the grids of a simulation have in common: one run, and messages that nobody else gives an
id."""

import secrets

from flwr.app import Message, Metadata
from flwr.serverapp import Grid


class LocalGrid(Grid):
    """A grid without a SuperLink."""

    def set_run(self, run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self):
        raise NotImplementedError("a simulation has no Flower run")

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


def with_id(message: Message) -> Message:
    """Return the message under an id of its own, which Flower leaves to its SuperLink."""
    about = message.metadata
    metadata = Metadata(
        run_id=about.run_id,
        message_id=secrets.token_hex(8),
        src_node_id=about.src_node_id,
        dst_node_id=about.dst_node_id,
        reply_to_message_id=about.reply_to_message_id,
        group_id=about.group_id,
        created_at=about.created_at,
        ttl=about.ttl,
        message_type=about.message_type,
        src_task_id=about.src_task_id,
        dst_task_id=about.dst_task_id,
    )
    return Message(message.content, metadata=metadata)
