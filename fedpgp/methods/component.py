"""The class of a configured method: by its name, or one of one's own by its import path."""

import inspect
from collections.abc import Mapping

from fedpgp.errors import FedPGPError, unknown
from fedpgp.methods.base import METHODS, Method
from fedpgp.registry import imported_class


def method_class(chosen: Mapping) -> type[Method]:
    """Return the class of a configured method.

    Args:
        chosen: the ``method`` group: its ``name``, or ``component``, the import path of a class.

    Raises:
        FedPGPError: an unknown name; a component beside another method; no such class, or one that
            is no method or lacks a part of one.
    """
    path = chosen.get("component")
    if not path:
        if chosen["name"] not in METHODS:
            raise FedPGPError(unknown("method", chosen["name"], list(METHODS)))
        return METHODS[chosen["name"]]
    if chosen["name"] in METHODS:
        raise FedPGPError(
            f"method.component={path} beside method={chosen['name']}, whose settings it would "
            "not read: write method=component, and settings as '+method.settings.KEY=VALUE'"
        )
    found = imported_class("method.component", path, Method)
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise FedPGPError(f"method.component={path} is not complete: it must define {lacking}")
    return found
