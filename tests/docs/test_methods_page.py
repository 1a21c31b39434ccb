"""docs/methods.md: a row for each method, with a command that exists, a formula that counts what a
client sends, and what a comparison with the official code came to."""

import re
from dataclasses import asdict

import pytest

from experiments.settings import composed
from fedpgp.build import method_settings
from fedpgp.methods import METHODS
from fedpgp.methods.fedpgp_terms import TERMS
from fedpgp.seeding import generator
from fedpgp.task import Task
from tests.helpers.small import _clip
from tools.methods_page import PAGE, rendered


def test_every_method_says_what_it_is_and_the_page_has_it():
    for name, method in METHODS.items():
        assert "about" in vars(method), f"fedpgp/methods: {name} has no about of its own"
    page = PAGE.read_text()
    assert rendered(page) == page, "docs/methods.md is older: python -m tools.methods_page"
    assert set(METHODS) == set(re.findall(r"\| `method=(\w+)", page))


def test_no_two_methods_have_one_place():
    orders = [method.about.order for method in METHODS.values() if method.about.order is not None]
    assert len(set(orders)) == len(orders)
    titles = {method.about.title for method in METHODS.values()}
    assert len(titles) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_formula_counts_what_is_sent(name):
    clip, about = _clip(), METHODS[name].about
    composed([f"method={name}", *([f"model={about.model}"] if about.model else [])])
    settings = METHODS[name].Settings(**METHODS[name].small)
    method = METHODS[name](settings, Task(clip, ["cat", "dog"], n_ctx=4))
    sizes = {
        "m": 4,
        "d": clip.width,
        "e": clip.embed,
        "W": clip.model.visual.conv1.out_channels,
        "C": 2,
        "L": clip.text_blocks,
        "T": 1,
        "max": max,
    }
    sent = sum(tensor.numel() for tensor in method.init_shared(generator(0, "shared")).values())
    assert eval(about.sent, {**sizes, **asdict(settings)}) == sent


def test_every_personal_term_has_a_row():
    assert set(TERMS) <= set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_compared_with_the_official_code(name):
    """One of three things is said; a repository and a commit where there is code; options that the
    method has."""
    said = METHODS[name].about.official
    assert re.match(r"(exact \((run|read)\)|declared difference: |no code exists)", said)
    if not said.startswith("no code"):
        assert re.search(r"[\w-]+/[\w-]+ at [0-9a-f]{7}\b", said)
    options = re.findall(r"`(method\.[^`]+)`", said)
    METHODS[name].Settings(**method_settings(composed([f"method={name}", *options])))
    assert said.startswith("declared") or len(options) == said.count("`") / 2
