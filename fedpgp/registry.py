"""Finds the classes of a folder, so that a new file needs no mention anywhere else."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable


def named_classes(package: str, base: type, skip: Iterable[str] = ()) -> dict[str, type]:
    """Return every class of a package that derives from ``base`` and has a name of its own.

    Args:
        package: its modules are imported, in the order of their names.
        base: what they derive from.
        skip: modules that are left alone.

    Returns:
        name -> class, a module's classes in their order.

    Raises:
        TypeError: two classes have the same name.
    """
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name in skip:
            continue
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values():
            own = inspect.isclass(value) and value.__module__ == f"{package}.{module.name}"
            if own and issubclass(value, base) and isinstance(vars(value).get("name"), str):
                if value.name in found:
                    raise TypeError(
                        f"{value} and {found[value.name]} are both named {value.name!r}"
                    )
                found[value.name] = value
    return found
