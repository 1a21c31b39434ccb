"""One exchange of messages with logical clients: what it cost, and how it can end."""

import time
from dataclasses import dataclass, field

NO_REPLY, CLIENT_FAILED = 1, 2
"""Codes of the error replies of :class:`strategies.grid.CohortGrid`."""


class Interrupted(KeyboardInterrupt):
    """The person asked to stop (Ctrl-C or SIGTERM)."""


@dataclass
class Traffic:
    """Bytes of records, both ways.

    ``down``/``up`` are what a deployment sends, one message a logical client, counted as the
    strategy wrote it and the client answered; ``wire_down``/``wire_up`` are what was really sent,
    packed, with the job's own fields.
    """

    down: int = 0
    up: int = 0
    wire_down: int = 0
    wire_up: int = 0

    def __iadd__(self, other: "Traffic") -> "Traffic":
        self.down += other.down
        self.up += other.up
        self.wire_down += other.wire_down
        self.wire_up += other.wire_up
        return self


@dataclass
class Exchange:
    """What one ``send_and_receive`` cost.

    Attributes:
        traffic: bytes.
        accounts: what each node said about its part (``seconds, process, rss_mb``, …).
        kept: clients that keep a private state of this round.
        began: when it began, in monotonic seconds.
    """

    traffic: Traffic = field(default_factory=Traffic)
    accounts: list[dict] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)
