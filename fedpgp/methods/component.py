"""The class of a configured method: by its name, or one of one's own by its import path."""

import inspect

from fedpgp.errors import FedPGPError, unknown
from fedpgp.methods.base import METHODS, Method
from fedpgp.registry import imported_class


def method_class(name: str, component: str | None = None) -> type[Method]:
    """Return the class of a configured method.

    Args:
        name: of a method of this project, or any other beside a component.
        component: the import path of a class of one's own.

    Raises:
        FedPGPError: an unknown name; a component beside another method; no such class, or one that
            is no method or lacks a part of one.
    """
    if not component:
        if name not in METHODS:
            raise FedPGPError(unknown("method", name, list(METHODS)))
        return METHODS[name]
    if name in METHODS:
        raise FedPGPError(
            f"method.component={component} beside method={name}, whose settings it would "
            "not read: write method=component, and settings as '+method.settings.KEY=VALUE'"
        )
    found = imported_class("method.component", component, Method)
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise FedPGPError(f"method.component={component} is not complete: it must define {lacking}")
    return found
