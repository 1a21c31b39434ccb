"""docs/methods.md: a row for each method, with a command that exists and a formula that counts what a client sends."""

import re
from dataclasses import asdict
from pathlib import Path

from experiments.settings import composed
from fedpgp.methods import METHODS
from fedpgp.personal_terms import TERMS
from fedpgp.seeding import generator
from fedpgp.task import Task
from tests.small import SMALL, _clip

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()


def test_every_method_has_a_row_and_its_formula_counts_what_is_sent():
    rows = re.findall(r"^\| (.*) \| `(.*?)` \| `method=(\w+)(.*?)` \|$", PAGE, re.MULTILINE)
    assert sorted(name for _, _, name, _ in rows) == sorted(METHODS)
    clip = _clip()
    for _, formula, name, more in rows:
        composed([f"method={name}", *more.split()])
        settings = METHODS[name].Settings(**SMALL.get(name, {}))
        method = METHODS[name](settings, Task(clip, ["cat", "dog"], n_ctx=4))
        sizes = {"m": 4, "d": clip.width, "e": clip.embed, "W": clip.model.visual.conv1.out_channels, "max": max}
        sent = sum(tensor.numel() for tensor in method.init_shared(generator(0, "shared")).values())
        assert eval(formula, {**sizes, **asdict(settings)}) == sent, name


def test_every_personal_term_has_a_row():
    assert set(TERMS) <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
