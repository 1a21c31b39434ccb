"""Reads the documentation pages that tests follow."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def block(page: str, language: str) -> str:
    """Return the first code block of this language on a page."""
    return blocks(page, language)[0]


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of this language on a page."""
    found = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found, f"docs/{page} has no {language} block"
    return found
