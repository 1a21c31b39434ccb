"""docs/methods.md: a row for each method, with a command that exists, a formula that counts what a
client sends, and what a comparison with the official code came to."""

import re
from dataclasses import asdict
from pathlib import Path

from experiments.settings import composed
from fedpgp.build import method_settings
from fedpgp.methods import METHODS
from fedpgp.methods.fedpgp_terms import TERMS
from fedpgp.seeding import generator
from fedpgp.task import Task
from tests.small import SMALL, _clip

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()

ROWS = re.findall(
    r"^\| .* \| `([^|]*)` \| `method=(\w+)([^|]*)` \| ([^|]*) \|$", PAGE, re.MULTILINE
)
"""Formula, method, more of its command, what is said of the official code."""


def test_every_method_has_a_row_and_its_formula_counts_what_is_sent():
    assert sorted(name for _, name, _, _ in ROWS) == sorted(METHODS)
    clip = _clip()
    for formula, name, more, _ in ROWS:
        composed([f"method={name}", *more.split()])
        settings = METHODS[name].Settings(**SMALL.get(name, {}))
        method = METHODS[name](settings, Task(clip, ["cat", "dog"], n_ctx=4))
        sizes = {
            "m": 4,
            "d": clip.width,
            "e": clip.embed,
            "W": clip.model.visual.conv1.out_channels,
            "max": max,
        }
        sent = sum(tensor.numel() for tensor in method.init_shared(generator(0, "shared")).values())
        assert eval(formula, {**sizes, **asdict(settings)}) == sent, name


def test_every_personal_term_has_a_row():
    assert set(TERMS) <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))


def test_every_method_is_compared_with_the_official_code():
    """One of three things is said; a repository and a commit where there is code;
    options that the method has."""
    assert len(ROWS) == len(METHODS)
    for _, name, more, said in ROWS:
        assert re.match(r"(exact \((run|read)\)|declared difference: |no code exists)", said), name
        if not said.startswith("no code"):
            assert re.search(r"[\w-]+/[\w-]+ at [0-9a-f]{7}\b", said), name
        options = re.findall(r"`(method\.[^`]+)`", said)
        config = composed([f"method={name}", *more.split(), *options])
        METHODS[name].Settings(**method_settings(config))
        assert said.startswith("declared") or len(options) == said.count("`") / 2, name
