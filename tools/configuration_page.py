"""Write the tables of docs/configuration.md: valid values from fedpgp.config, defaults and
sentences from conf/.

python -m tools.configuration_page
"""

from pathlib import Path

import yaml

from experiments.help import explained, prefix_of
from experiments.settings import CONF, choices
from fedpgp.config import Config, Section
from tools.methods_page import table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEADER = ("key", "default", "valid values", "meaning")
BEGIN = "<!-- settings: python -m tools.configuration_page -->"
END = "<!-- end of settings -->"
FEW = 3
"""Choices of a group whose defaults are all shown."""


def files_of(group: str) -> dict[str, Path]:
    """The files that give a section's defaults: name of the choice -> file, the default choice
    first. The top of the configuration, and what stands there for all choices of a group, have no
    choice."""
    top = {"": CONF / "config.yaml"}
    if group not in choices():
        return top
    first = next(d[group] for d in yaml.safe_load(top[""].read_text())["defaults"] if group in d)
    names = [first, *(name for name in choices()[group] if name != first)]
    return {**{name: CONF / group / f"{name}.yaml" for name in names}, **top}


def keys_of(section: type[Section]) -> dict[str, dict[str, tuple[str, str]]]:
    """The declared keys of a section that a person may set: name -> choice -> (value, sentence),
    as conf/ has them. The key that names the choice is left out."""
    choosing = ("name", "scheme") if section.prefix else ("protocol",)
    declared = {
        section.key(name): {}
        for name, each in section.declared().items()
        if name not in choosing and not each.metadata.get("of_a_node")
    }
    for choice, path in files_of(section.prefix).items():
        own = section.prefix in choices() and choice
        prefix = prefix_of(path, section.prefix) if own else ""
        for key, value, sentence in explained(path, prefix):
            if key in declared and value:
                declared[key][choice] = (value, sentence)
    return declared


def row(section: type[Section], key: str, found: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    """A key's line."""
    rule = section.declared()[key.removeprefix(f"{section.prefix}.")].metadata["rule"]
    by_value: dict[str, list[str]] = {}
    for choice, (value, _) in found.items():
        by_value.setdefault(value, []).append(choice)
    if len(by_value) == 1:
        default = f"`{next(iter(by_value))}`"
    elif len(found) <= FEW:
        default = ", ".join(f"`{value}` ({', '.join(names)})" for value, names in by_value.items())
    else:
        default = "by choice"
    sentence = next((said for _, said in found.values() if said), "")
    return (f"`{key}`", default, rule.words, sentence.replace("|", "\\|").replace("<", "&lt;"))


def tables() -> str:
    """A table for the top of the configuration and for each section."""
    parts = []
    for section in (Config, *Config.sections().values()):
        rows = [row(section, key, found) for key, found in keys_of(section).items()]
        if rows:
            heading = f"`{section.prefix}`" if section.prefix else "At the top"
            parts += [f"### {heading}", table(HEADER, rows)]
    return "\n\n".join(parts)


def rendered(page: str) -> str:
    """The page with its tables as the code and conf/ have them."""
    start = page.index(BEGIN) + len(BEGIN)
    return f"{page[:start]}\n\n{tables()}\n\n{page[page.index(END, start) :]}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
    print(f"wrote {PAGE}")
