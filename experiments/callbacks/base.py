"""A callback: the server tells it what happens (:class:`strategies.observer.Observer`)."""

from collections.abc import Sequence


class Callback:
    """Does nothing; a callback overrides what it is for."""

    def stage(self, text: str) -> None:
        """Take note that something has begun that takes a while: ``loading the model``."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Take note how far something is that takes long."""

    def warn(self, text: str) -> None:
        """Take note of what a person should know."""

    def traceback(self, text: str) -> None:
        """Take note of an exception of a method's code."""

    def clients(self, table: list[dict]) -> None:
        """Take note who the clients are, and what images each has."""

    def trained(self, record: dict) -> None:
        """Take note of a round: the object of ``metrics.jsonl``."""

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        """Take note of an evaluation: the object of ``metrics.jsonl``, and a row a client."""

    def samples(self, samples: list[dict]) -> None:
        """Take note of images and what is answered for them."""

    def mark(self, unevaluated: bool = False) -> dict:
        """Return what the callback needs to resume from here; saved in the checkpoint.

        Args:
            unevaluated: the round's evaluation is due, and another mark follows it.
        """
        return {}

    def roll_back(self, mark: dict, server_round: int) -> None:
        """Forget what came after this mark, made after that round."""


class Callbacks(Callback):
    """Several callbacks, each told in turn."""

    def __init__(self, callbacks: Sequence[Callback]):
        self._all = tuple(callbacks)

    def stage(self, text: str) -> None:
        for each in self._all:
            each.stage(text)

    def progress(self, done: int, total: int, what: str) -> None:
        for each in self._all:
            each.progress(done, total, what)

    def warn(self, text: str) -> None:
        for each in self._all:
            each.warn(text)

    def traceback(self, text: str) -> None:
        for each in self._all:
            each.traceback(text)

    def clients(self, table: list[dict]) -> None:
        for each in self._all:
            each.clients(table)

    def trained(self, record: dict) -> None:
        for each in self._all:
            each.trained(record)

    def evaluated(self, record: dict, rows: list[dict]) -> None:
        for each in self._all:
            each.evaluated(record, rows)

    def samples(self, samples: list[dict]) -> None:
        for each in self._all:
            each.samples(samples)

    def mark(self, unevaluated: bool = False) -> dict:
        """Return what all of them need, in one mapping."""
        marks = [each.mark(unevaluated) for each in self._all]
        return {key: value for mark in marks for key, value in mark.items()}

    def roll_back(self, mark: dict, server_round: int) -> None:
        for each in self._all:
            each.roll_back(mark, server_round)
