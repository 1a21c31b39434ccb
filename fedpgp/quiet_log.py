"""Leaves out, for a while, what libraries log below an error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_alone(logger: str | None = None) -> Iterator[None]:
    """Log nothing below an error inside the block.

    Args:
        logger: its name; None is the root's.
    """
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
