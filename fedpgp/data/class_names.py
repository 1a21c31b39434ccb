"""Class names: what people write becomes text, and no two classes have one name."""

import unicodedata
from collections.abc import Iterable, Sequence

from fedpgp.errors import FedPGPError
from fedpgp.plain_text import written_out

JOINER = "\u200d"
"""The zero-width joiner: emoji and several scripts are other words without it."""


def nfc(text: str) -> str:
    """The composed Unicode form: a folder written on macOS has the decomposed one,
    and is the same name."""
    return unicodedata.normalize("NFC", text)


def as_names(values: object) -> list[str]:
    """The class names of a setting, in its order. YAML's numbers, booleans and null are names too.

    Raises:
        FedPGPError: no list; names that :func:`check_names` refuses.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise FedPGPError(
            f"dataset.class_names={values!r} is no list; write 'dataset.class_names=[cat,dog]'"
        )
    names = []
    for value in values:
        if value is None or isinstance(value, bool):
            value = {None: "null", True: "true", False: "false"}[value]
        if not isinstance(value, (str, int, float)):
            raise FedPGPError(f"dataset.class_names holds {value!r}, which is no name")
        names.append(nfc(str(value)))
    check_names(names)
    return names


def check_names(names: Iterable[str]) -> None:
    """Refuses names that no prompt could tell apart, and such as say nothing.

    Raises:
        FedPGPError: naming them.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not (plain := spoken(name)):
            raise FedPGPError(
                f"a class is named {name!r}, which says nothing in a prompt: rename it"
            )
        check_text(name, "class")
        if plain in seen:
            twice = (
                f"class {name!r} is there twice"
                if seen[plain] == name
                else f"classes {seen[plain]!r} and {name!r}"
            )
            raise FedPGPError(
                f"{twice}: names that differ in case, underscores, Unicode form or unseen "
                "characters alone are one name in a prompt; rename one, or put their images "
                "together"
            )
        seen[plain] = name


def told_apart(names: Sequence[str]) -> list[str]:
    """The names, those after the first that are alike with a number: published lists have a name
    for two classes (ImageNet's two missiles)."""
    found: list[str] = []
    taken = set(names)
    for name in names:
        new, number = name, 1
        while new in found or (number > 1 and new in taken):
            number += 1
            new = f"{name} ({number})"
        found.append(new)
    return found


def spoken(name: str) -> str:
    """A name as prompts have it: without underscores and characters that nobody sees, in lower
    case, in one Unicode form."""
    seen = "".join(c for c in name if c == JOINER or unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).lower().replace("_", " ").split())


def check_template(template: object) -> None:
    """Refuses a template that has no place, or several, for the class name, or other braces.

    Raises:
        FedPGPError: naming it.
    """
    place = "{}"
    if not isinstance(template, str) or template.count(place) != 1:
        raise FedPGPError(
            f"dataset.template={template!r} needs exactly one {place}, the place of the class name"
        )
    if set(template.replace(place, "")) & set(place):
        raise FedPGPError(
            f"dataset.template={template!r} has other braces than {place}, the place of the class "
            "name: leave them out"
        )


def check_text(name: str, what: str) -> None:
    """Refuses a name that cannot be written to a table.

    Raises:
        FedPGPError: a folder's name that is not UTF-8, or has control characters.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise FedPGPError(
            f"the name of {what} {written_out(name)} is not UTF-8 text: rename the folder"
        )
