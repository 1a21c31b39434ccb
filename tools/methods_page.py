"""Write the tables of docs/methods.md from what each method's file says of it.

python -m tools.methods_page
"""

import re
import textwrap
from pathlib import Path

from fedpgp.methods import METHODS
from fedpgp.methods.about import FAMILIES, About

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
HEADER = ("method", "paper", "shared", "personal", "sent", "command", "against the official code")


def facts() -> dict[str, About]:
    """What is said of each method, in the order of the tables."""
    order = {name: METHODS[name].about.order for name in METHODS}
    names = sorted(METHODS, key=lambda name: (order[name] is None, order[name] or 0, name))
    return {name: METHODS[name].about for name in names}


def methods_tables() -> str:
    """A table for each family."""
    parts = []
    for family, heading in FAMILIES.items():
        rows = [row(name, about) for name, about in facts().items() if about.family == family]
        parts += [f"### {heading}", table(HEADER, rows)]
    return "\n\n".join(parts)


def row(name: str, about: About) -> tuple[str, ...]:
    """A method's line."""
    command = f"method={name}" + (f" model={about.model}" if about.model else "")
    return (
        *(about.title, about.paper, about.shared, about.personal),
        *(f"`{about.sent}`", f"`{command}`", about.official),
    )


def passes_table() -> str:
    """How many contexts of a client go through the text tower in a step."""
    groups: dict[str, list[str]] = {}
    for about in facts().values():
        groups.setdefault(about.passes, []).append(about.title)
    rows = [(passes, ", ".join(titles)) for passes, titles in sorted(groups.items(), key=_by_cost)]
    return table(("passes", "methods"), rows)


def updates_text() -> str:
    """Whose server reads what each client sent."""
    named = [about.title for name, about in facts().items() if METHODS[name].needs_each_update]
    text = (
        f"The server reads what each client sent of: {', '.join(named)}. Of every other method it "
        "needs their average alone."
    )
    return textwrap.fill(text, 100)


def _by_cost(group: tuple[str, list[str]]) -> tuple:
    passes, _ = group
    number = re.match(r"\d+", passes)
    return (0 if passes == "none" else 1 if number else 2, number[0] if number else "", passes)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rendered(page: str) -> str:
    """The page with its tables as the methods' files have them."""
    blocks = {"methods": methods_tables(), "updates": updates_text(), "passes": passes_table()}
    for name, text in blocks.items():
        begin, end = f"<!-- {name}: python -m tools.methods_page -->", f"<!-- end of {name} -->"
        start = page.index(begin) + len(begin)
        page = f"{page[:start]}\n\n{text}\n\n{page[page.index(end, start) :]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
    print(f"wrote {PAGE}")
