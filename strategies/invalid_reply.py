"""Why a reply is left out, and what every check of a reply needs."""

from collections.abc import Callable

from fedpgp.plain_text import one_line

MOST = 1e9
"""Largest count, loss, number of steps, of seconds or of megabytes that is believed."""


class InvalidReply(Exception):
    """Why a reply is left out; a line that is safe to print."""

    def __init__(self, reason: str):
        super().__init__(one_line(reason))


def checked(check: Callable[[], object]) -> object:
    """Run a check of what a node says; any exception is that node's.

    Raises:
        InvalidReply: the check raised it, or anything else.
    """
    try:
        return check()
    except InvalidReply:
        raise
    except Exception as error:
        raise InvalidReply(f"its reply cannot be read ({type(error).__name__}: {error})") from error


def check_range(name: str, value: object, least: float, most: float) -> None:
    """Raise :class:`InvalidReply` unless a metric is a number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InvalidReply(
            f"metric {name} is {shown(value)}; it is a number from {least:g} to {most:g}"
        )


def shown(value: object) -> str:
    """Return a value for a message, however long it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    return one_line(repr(value[:100] if isinstance(value, str) else value), 100)
