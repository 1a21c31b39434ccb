"""README, CONTRIBUTING and docs/: no dead link, commands that compose, a README that is short."""

import re
import shlex
from pathlib import Path

import pytest

from experiments.settings import composed
from fedpgp.build import check_config, split_configured

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_dead_link(page):
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_pages_of_the_site_link_to_nothing_outside_it():
    for page in (ROOT / "docs").glob("*.md"):
        assert not [link for link in links(page) if link.startswith("../")], page.name


def test_the_map_and_the_site_name_every_page():
    names = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert names - {"index.md"} <= {
        link.partition("#")[0] for link in links(ROOT / "docs/index.md")
    }
    assert names == set(re.findall(r"(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))


def commands(page: Path) -> list[list[str]]:
    """The project's commands on a page, from the module's name on, without their comments."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`(python -m experiments\.[^`]+)`", FENCE.sub("", text))
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m exp")]
    return [words[2:] for words in found]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    "words",
    [words for page in PAGES[:2] for words in commands(page)]
    + commands(ROOT / "docs" / "configuration.md"),
    ids=" ".join,
)
def test_printed_commands_are_commands(words):
    """The module exists; what experiments.run is given composes and gives every client images,
    where it needs no run folder."""
    module, *rest = words
    path = ROOT / Path(*module.split("."))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if module != "experiments.run" or "--help" in rest or "resume" in " ".join(rest):
        return
    if "-m" in rest:  # each value of a sweep
        overrides = [
            f"{key}={value}"
            for key, _, values in (word.partition("=") for word in overrides)
            for value in values.split(",")[:1]
        ]
    config = composed(overrides)
    check_config(config)
    if config["dataset"]["name"] == "emoji":
        split_configured(config)


def test_the_library_lines_of_readme_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert tuple(names["context"].shape) == (5, 4, 192)
    assert tuple(names["classes"].shape) == (5, 3, 256)
