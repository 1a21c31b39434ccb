"""Names with a prefix, such as ``shared/p_G`` in a checkpoint."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def strip_prefix(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    """Select the entries whose names start with ``prefix``, and take it off; their order stays."""
    return {
        name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)
    }
