"""docs/add_a_method.md followed to the letter: its file, its two lines, a run."""

import re
import sys
import types
from pathlib import Path

import yaml

from experiments.runner import start
from fedpgp.methods import METHODS
from tests.docs.pages import block
from tests.small import small_config, small_federation

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md").read_text()


def test_the_page_works_in_under_forty_lines(tmp_path, monkeypatch):
    code = block("add_a_method.md", "python")
    assert len(code.splitlines()) < 40
    module = types.ModuleType("scaled_prompt")
    monkeypatch.setitem(sys.modules, "scaled_prompt", module)  # a dataclass looks its module up
    exec(compile(code, "scaled_prompt.py", "exec"), vars(module))
    monkeypatch.setitem(METHODS, "scaled_prompt", module.ScaledPrompt)
    config = {**small_config(tmp_path / "run", "rounds=2"), "method": yaml.safe_load(block("add_a_method.md", "yaml"))}
    summary = start(config, federation_of=small_federation)
    assert summary["status"] == "finished" and summary["method"] == "scaled_prompt"
    assert summary["accuracy"]["personal"]["local"] is not None


def test_the_files_it_points_to_exist():
    folder = Path(__file__).resolve().parents[2] / "fedpgp" / "methods"
    for row in re.findall(r"^\| .* \|$", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+\.py)`", row):
            assert (folder / name).exists(), name
