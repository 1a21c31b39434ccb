"""What a node tells of an exception: its text, the line of code it comes from, and its
traceback."""

import sys
import traceback
from pathlib import Path

from fedpgp.errors import FedPGPError
from fedpgp.plain_text import one_line

MOST_TRACEBACKS = 3
"""Different exceptions of one message whose traceback is sent."""
MOST_REASONS = 32
"""Different exceptions of one message that are told of at all."""
LONGEST_TRACEBACK = 8192
"""Characters of a traceback that are kept: its end, which names the line."""
LONGEST_MESSAGE = 800
"""Bytes of an exception's own text that are kept, so that the line of code has room behind it."""

_PROJECT = Path(__file__).resolve().parents[1]
_LIBRARIES = (
    "site-packages",
    "dist-packages",
    f"python{sys.version_info[0]}.{sys.version_info[1]}",
)


def describe(error: BaseException) -> str:
    """Return the error in a line: its message, and for an exception nobody foresaw its
    type and its line of code.

    The message may hold a whole tensor; it is cut to a length of which many fit into a node's
    account.
    """
    if isinstance(error, FedPGPError):
        return one_line(str(error))
    line = line_of(error)
    return one_line(f"{type(error).__name__}: {error}", LONGEST_MESSAGE) + (
        f" ({line})" if line else ""
    )


def line_of(error: BaseException) -> str:
    """Return ``file:line`` of the deepest frame outside the libraries, where a person looks
    first."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in Path(f.filename).parts for part in _LIBRARIES)]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    path = Path(frame.filename)
    shown = path.relative_to(_PROJECT) if path.is_relative_to(_PROJECT) else path
    return f"{shown}:{frame.lineno}"


class Failures:
    """The exceptions of one message, for the node's account: how many clients were trained together
    when each was raised, and its traceback.
    """

    def __init__(self):
        self._found: dict[str, dict] = {}

    def add(self, error: Exception, clients: int) -> None:
        """Note an exception that these many clients met together."""
        reason = describe(error)
        known = self._found.setdefault(reason, {"clients": 0, "reason": reason, "traceback": ""})
        known["clients"] = max(known["clients"], clients)
        if not known["traceback"] and len(self._found) <= MOST_TRACEBACKS:
            text = "".join(traceback.format_exception(error))
            known["traceback"] = text[-LONGEST_TRACEBACK:]

    def account(self) -> list[dict]:
        """Return them as JSON-ready dicts: ``clients, reason, traceback``."""
        return list(self._found.values())[:MOST_REASONS]
