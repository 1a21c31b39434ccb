"""What the sections of a configuration have in common: made of a mapping, and checked."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Self

from fedpgp.config.rules import Group
from fedpgp.errors import FedPGPError, unknown

OPTIONS = "options"
"""The field that takes the keys which one choice of a group has for itself."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Settings that belong together; each is a field, made by a function of
    :mod:`fedpgp.config.rules`.

    Attributes:
        prefix: before the names of its settings on the command line.

    Raises:
        FedPGPError: a value that is not valid; naming the setting and what is.
    """

    prefix: ClassVar[str] = ""

    def __post_init__(self):
        self.check(**{name: getattr(self, name) for name in self.declared()})

    @classmethod
    def check(cls, **values: object) -> None:
        """Refuse values of some settings that are not valid; what stands for a missing key is.

        Raises:
            FedPGPError: naming the setting, its value and the valid ones.
        """
        for name, each in cls.declared().items():
            if name in values and values[name] is not each.default:
                each.metadata["rule"].check(cls.key(name), values[name])

    @classmethod
    def key(cls, name: str) -> str:
        """A setting's name on the command line."""
        return f"{cls.prefix}.{name}" if cls.prefix else name

    @classmethod
    def declared(cls) -> dict[str, Field]:
        """The settings that are declared here, by name."""
        return {each.name: each for each in fields(cls) if "rule" in each.metadata}

    @classmethod
    def beside(cls) -> set[str]:
        """The settings that are there whatever is chosen: all but the one that names the choice."""
        return set(cls.declared()) - {"name"}

    @classmethod
    def sections(cls) -> dict[str, type["Section"]]:
        """The sections inside, by name."""
        found = {each.name: each.metadata.get("section") for each in fields(cls)}
        return {name: section for name, section in found.items() if section is not None}

    @classmethod
    def missing_values(cls) -> dict[str, object]:
        """What stands for each key that a configuration may lack, by its name on the command
        line; also those of the sections inside."""
        found = {
            cls.key(name): each.default
            for name, each in cls.declared().items()
            if each.default is not MISSING
        }
        for inside in cls.sections().values():
            found |= inside.missing_values()
        return found

    @classmethod
    def of(cls, given: Mapping) -> Self:
        """The section of a resolved configuration.

        Raises:
            FedPGPError: an unknown key, with the nearest one; a key without a value; a value that
                is not valid.
        """
        declared, sections = cls.declared(), cls.sections()
        takes_more = any(each.name == OPTIONS for each in fields(cls))
        values, options = {}, {}
        for name, value in given.items():
            if value == "???":
                raise _no_value(cls.key(name))
            if name in sections:
                Group().check(cls.key(name), value)
                values[name] = sections[name].of(value)
            elif name in declared:
                values[name] = value
            elif takes_more:
                options[name] = value
            else:
                known = [cls.key(each) for each in (*declared, *sections)]
                raise FedPGPError(unknown("setting", cls.key(name), known))
        for each in fields(cls):
            if each.name not in values and each.name != OPTIONS and each.default is MISSING:
                raise _no_value(cls.key(each.name))
        return cls(**values, **({OPTIONS: options} if takes_more else {}))


def section(kind: type[Section], missing: Any = MISSING) -> Any:
    """A section inside another."""
    return field(default=missing, metadata={"section": kind})


def own_options() -> Any:
    """The keys that one choice of a group has for itself: its own code declares and checks them."""
    return field(default_factory=dict)


def _no_value(key: str) -> FedPGPError:
    return FedPGPError(f"{key} has no value; give it one: {key}=...")
