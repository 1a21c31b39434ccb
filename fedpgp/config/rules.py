"""Kinds of values that a setting may have. Each makes the field of a section, beside its type.

``missing`` is the value where a configuration has no such key: that of a run which is older than
the key. A field without it has to be there. The default of a new run stands in ``conf/``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any

from fedpgp.errors import FedPGPError, check_number, number_in_words, shown, unknown
from fedpgp.registry import named_entries


class Rule(ABC):
    """What values a setting may have."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The valid values, as messages and docs/configuration.md say them."""

    @abstractmethod
    def allows(self, value: object) -> bool:
        """Whether a value is valid."""

    def check(self, name: str, value: object) -> None:
        """Refuse a value that is not valid.

        Raises:
            FedPGPError: naming the setting, its value and the valid ones.
        """
        if not self.allows(value):
            raise FedPGPError(f"{name}={shown(value)} cannot work; it is {self.words}")


def _passes(rule: Rule, value: object) -> bool:
    """Whether a rule's own check takes a value."""
    try:
        rule.check("", value)
    except FedPGPError:
        return False
    return True


@dataclass(frozen=True)
class Number(Rule):
    """A number in a range, or one word, or null.

    Attributes:
        limits: of :func:`fedpgp.errors.check_number`.
        word: a word that is valid too.
        null: when to choose null; None: null is not valid.
    """

    limits: Mapping[str, Any]
    word: str = ""
    null: str | None = None

    @property
    def words(self) -> str:
        return number_in_words(**self.limits) + self._otherwise

    def allows(self, value: object) -> bool:
        return _passes(self, value)

    def check(self, name: str, value: object) -> None:
        if value is None and self.null is not None or self.word and value == self.word:
            return
        check_number(name, value, **self.limits, otherwise=self._otherwise)

    @property
    def _otherwise(self) -> str:
        word = f", or {self.word}" if self.word else ""
        return word if self.null is None else f"{word}, or null {self.null}".rstrip()


@dataclass(frozen=True)
class Numbers(Rule):
    """So many numbers in a range, in a list.

    Attributes:
        count: of numbers.
        limits: of each.
        example: a valid list.
    """

    count: int
    limits: Mapping[str, Any]
    example: str

    @property
    def words(self) -> str:
        return f"{self.count} numbers, {self.example}, each {number_in_words(**self.limits)}"

    def allows(self, value: object) -> bool:
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != self.count:
            return False
        return all(Number(self.limits).allows(each) for each in value)


@dataclass(frozen=True)
class Choice(Rule):
    """One of some words; with ``null`` (what it means) null too. ``advice``: what else helps who
    chose another."""

    values: tuple[str, ...]
    null: str | None = None
    advice: str = ""

    @property
    def words(self) -> str:
        *first, last = self.values
        said = f"{', '.join(first)} or {last}" if first else last
        return said if self.null is None else f"{said}, or null {self.null}"

    def allows(self, value: object) -> bool:
        return value in self.values or value is None and self.null is not None

    def check(self, name: str, value: object) -> None:
        if not self.allows(value):
            valid = self.values if self.null is None else (*self.values, "null")
            advice = f" ({self.advice})" if self.advice else ""
            raise FedPGPError(unknown(f"value of {name}", value, valid) + advice)


class Flag(Rule):
    """True or false."""

    words = "true or false"

    def allows(self, value: object) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Text(Rule):
    """A text; with ``null`` null too."""

    null: bool = False

    @property
    def words(self) -> str:
        return "a text, or null" if self.null else "a text"

    def allows(self, value: object) -> bool:
        return isinstance(value, str) or value is None and self.null

    def check(self, name: str, value: object) -> None:
        if not self.allows(value):
            advice = "" if value is None else f"; write \"{name}='{shown(value)}'\""
            raise FedPGPError(f"{name}={shown(value)} cannot work; it is {self.words}{advice}")


class Entries(Rule):
    """A list of things by name, with or without settings; null: none. What they are is checked by
    what they are for."""

    words = "a list of names, or of names with settings"

    def allows(self, value: object) -> bool:
        return _passes(self, value)

    def check(self, name: str, value: object) -> None:
        named_entries(name, value)


class Clients(Rule):
    """Numbers of clients."""

    words = "a list of clients' numbers, each once, from 0"

    def allows(self, value: object) -> bool:
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        whole_numbers = all(isinstance(each, int) and not isinstance(each, bool) for each in value)
        return whole_numbers and len(set(value)) == len(value) and min(value, default=0) >= 0


class Group(Rule):
    """Settings of their own."""

    words = "a group of settings"

    def allows(self, value: object) -> bool:
        return isinstance(value, Mapping)


def whole(
    *,
    missing: Any = MISSING,
    word: str = "",
    null: str | None = None,
    of_a_node: bool = False,
    **limits: float,
) -> Any:
    """A whole number with these limits (``least``, ``most``, ``above``, ``below``)."""
    rule = Number({**limits, "whole": True}, word, null)
    return setting(rule, missing, of_a_node=of_a_node)


def number(*, missing: Any = MISSING, null: str | None = None, **limits: Any) -> Any:
    """A number with these limits (``least``, ``most``, ``above``, ``below``; ``of``: its unit)."""
    return setting(Number(limits, "", null), missing)


def numbers(example: Sequence[float], **limits: float) -> Any:
    """As many numbers as the example, which also stands for a missing key, with these limits."""
    said = f"[{','.join(f'{each:g}' for each in example)}]"
    return setting(Numbers(len(example), limits, said), tuple(example))


def choice(*values: str, missing: Any = MISSING, null: str | None = None, advice: str = "") -> Any:
    """One of these words."""
    return setting(Choice(values, null, advice), missing)


def flag(*, missing: Any = MISSING) -> Any:
    """True or false."""
    return setting(Flag(), missing)


def text(*, missing: Any = MISSING, null: bool = False, of_a_node: bool = False) -> Any:
    """A text. ``of_a_node``: no person sets it, but a node of a deployment, for itself."""
    return setting(Text(null), missing, of_a_node=of_a_node)


def entries(*, missing: Any = MISSING) -> Any:
    """A list of things by name, with or without settings."""
    return setting(Entries(), missing)


def client_numbers(*, missing: Any = MISSING) -> Any:
    """A list of clients."""
    return setting(Clients(), missing)


def group(*, missing: Any = MISSING) -> Any:
    """Settings of their own, which are checked by what they are for."""
    return setting(Group(), missing)


def setting(rule: Rule, missing: Any = MISSING, **about: object) -> Any:
    """The field of a setting with a rule of one's own."""
    return field(default=missing, metadata={"rule": rule, **about})
