"""The methods' names as their papers write them, for tables, pages and charts. Keys stay in
CSV and configurations."""

from fedpgp.methods import METHODS


def title(method: str) -> str:
    """Return the method's name as its paper writes it; its key where it is none of the
    project's."""
    return METHODS[method].about.title if method in METHODS else method


def in_order() -> list[str]:
    """Return the methods' keys in the order of tables, which gives each its colour and line on
    pages: a new method is behind those that have a place of their own."""

    def place(method: str) -> tuple:
        order = METHODS[method].about.order
        return order is None, order or 0, method

    return sorted(METHODS, key=place)
