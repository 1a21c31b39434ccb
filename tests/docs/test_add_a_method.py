"""docs/add_a_method.md followed to the letter: its file, its YAML, a run; and from a
package of one's own."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml

from experiments.runner import start
from experiments.settings import composed
from fedpgp.build import build_federation, check_config
from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS, method_class
from tests.docs.pages import block
from tests.helpers.small import small_config, small_federation

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md").read_text()


def test_the_page_works_in_under_fifty_lines(tmp_path, monkeypatch):
    code = block("add_a_method.md", "python")
    assert len(code.splitlines()) < 50
    monkeypatch.setitem(METHODS, "scaled_prompt", None)
    module = types.ModuleType("scaled_prompt")
    monkeypatch.setitem(sys.modules, "scaled_prompt", module)  # a dataclass looks its module up
    exec(compile(code, "scaled_prompt.py", "exec"), vars(module))
    config = {
        **small_config(tmp_path / "run", "rounds=2"),
        "method": yaml.safe_load(block("add_a_method.md", "yaml")),
    }
    summary = start(config, federation_of=small_federation)
    assert summary["status"] == "finished" and summary["method"] == "scaled_prompt"
    assert summary["accuracy"]["personal"]["local"] is not None


def test_the_files_it_points_to_exist():
    folder = Path(__file__).resolve().parents[2] / "fedpgp" / "methods"
    for row in re.findall(r"^\| .* \|$", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+\.py)`", row):
            assert (folder / name).exists(), name


def test_a_method_in_a_package_of_ones_own(tmp_path, monkeypatch):
    """No file of the project knows it; its settings are given on the command line."""
    monkeypatch.setitem(METHODS, "scaled_prompt", None)
    (tmp_path / "my_package.py").write_text(block("add_a_method.md", "python"))
    monkeypatch.syspath_prepend(tmp_path)
    command = re.search(r"method=component.*", PAGE)[0]
    small = ("runtime=inline", "clients=6", "rounds=1", "shots=2", "local_epochs=1")
    config = composed([*shlex.split(command), *small, f"run_dir={tmp_path / 'run'}"])
    summary = start(config)
    assert summary["status"] == "finished" and summary["method"] == "my_package.ScaledPrompt"
    assert summary["accuracy"]["personal"]["local"] is not None
    for path, said in (
        ("my_package.Nothing", "has no attribute"),
        ("nowhere.Method", "No module named"),
        ("Method", "package.module.Class"),
        ("pathlib.Path", "no class that derives from fedpgp.methods.Method"),
        ("fedpgp.methods.Method", "not complete: it must define global_classifier"),
    ):
        with pytest.raises(FedPGPError, match=said):
            method_class(path, path)
    with pytest.raises(FedPGPError, match="beside method=fedpgp.*write method=component"):
        build_federation(composed(["method=fedpgp", "+method.component=my_package.ScaledPrompt"]))
    with pytest.raises(FedPGPError, match="method.component has no value; give it one"):
        check_config(composed(["method=component"]))
