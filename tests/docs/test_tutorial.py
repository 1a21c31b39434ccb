"""docs/tutorial.md: its printed commands, one after the other, as a newcomer types them."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.timeout(600)
def test_every_command_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        python, dash, module, *arguments = shlex.split(line, comments=True)
        assert (python, dash) == ("python", "-m")
        monkeypatch.setattr("sys.argv", [module, *arguments])
        assert importlib.import_module(module).main(arguments) == 0, line
        capsys.readouterr()
    for name in ("report.html", "summary.json", "config.yaml", "evaluations"):
        assert (tmp_path / "first" / name).exists(), name
    assert (tmp_path / "classifier" / "classifier.safetensors").exists()
    assert len(list((tmp_path / "outputs" / "default").glob("*/summary.json"))) >= 3
