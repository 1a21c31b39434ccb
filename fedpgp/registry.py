"""Things of one kind by name. The files of a folder register their own: a new file needs no mention
elsewhere."""

import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from typing import TypeVar

from fedpgp.errors import FedPGPError

Thing = TypeVar("Thing")


class Registry(MutableMapping[str, Thing]):
    """Name -> thing, in the order of the names. The folder's files are imported when it is first
    read.

    Args:
        package: the folder's dotted name.
        base: what registered classes derive from; each gets its name as the attribute ``name``.
            None: anything may be registered, and stays as it is.

    Example:
        >>> METHODS = Registry("fedpgp.methods", Method)
        >>> @METHODS.register("mine")
        ... class Mine(Method): ...
        >>> METHODS["mine"]
    """

    def __init__(self, package: str, base: type | None = None):
        self._package, self._base = package, base
        self._things: dict[str, Thing] = {}
        self._searched = False

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Decorate a class or function so that it is known under a name.

        Raises:
            TypeError: the name is another one's, or the class does not derive from the base.
        """

        def add(thing: Thing) -> Thing:
            there = self._things.get(name)
            if there is not None and _place(there) != _place(thing):
                raise TypeError(f"{_place(there)} and {_place(thing)} are both named {name!r}")
            if self._base is not None:
                if not (inspect.isclass(thing) and issubclass(thing, self._base)):
                    base = self._base.__name__
                    raise TypeError(f"{_place(thing)} is no class that derives from {base}")
                thing.name = name
            self._things[name] = thing
            return thing

        return add

    def __getitem__(self, name: str) -> Thing:
        if not isinstance(name, Hashable):  # from a configuration: a list, a mapping
            raise KeyError(name)
        return self._all()[name]

    def __setitem__(self, name: str, thing: Thing) -> None:
        self._all()[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Registry({self._package!r}: {', '.join(self)})"

    def _all(self) -> dict[str, Thing]:
        if not self._searched:
            self._searched = True  # a file of the folder may look while it is imported
            try:
                for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                    _import(f"{self._package}.{module.name}")
            except BaseException:
                self._searched = False
                raise
        return self._things


def _import(name: str) -> None:
    """Import a file of a registry's folder.

    Raises:
        FedPGPError: it cannot be imported; names the file and the line.
    """
    try:
        importlib.import_module(name)
    except (SyntaxError, ImportError, NameError, AttributeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        at = (place.filename, place.lineno)
        if isinstance(error, SyntaxError):
            at = (error.filename, error.lineno)
        raise FedPGPError(
            f"{name} cannot be imported: {type(error).__name__}: {error} ({at[0]}:{at[1]})"
        ) from error


def imported_class(key: str, path: object, base: type) -> type:
    """Return a class of somebody's own package by its import path.

    Args:
        key: of the configuration, for messages.
        path: ``package.module.Class``.
        base: what it derives from.

    Raises:
        FedPGPError: no such class, or one that does not derive from the base.
    """
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise FedPGPError(
            f"{key}={path}: {error}; write package.module.Class of a package that Python finds "
            "(PYTHONPATH)"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        package = base.__module__.removesuffix(".base")
        raise FedPGPError(f"{key}={path} is no class that derives from {package}.{base.__name__}")
    return found


def named_entries(key: str, entries: object) -> list[dict]:
    """Return a configuration's list of things by name, each as a mapping with a ``name``.

    Args:
        key: of the configuration.
        entries: names, or mappings of a name and settings; None: there is none.

    Raises:
        FedPGPError: it is no such list.
    """
    listed = [] if entries is None else entries
    found = [
        {"name": entry} if isinstance(entry, str) else dict(entry)
        for entry in (listed if isinstance(listed, list | tuple) else [])
        if isinstance(entry, str | Mapping)
    ]
    whole = isinstance(listed, list | tuple) and len(found) == len(listed)
    if not whole or any("name" not in entry for entry in found):
        raise FedPGPError(
            f"{key}={entries!r} cannot work; it is a list of names, or of names with settings: "
            "[{name: ..., setting: ...}]"
        )
    return found


def _place(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing)}"
