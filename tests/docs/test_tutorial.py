"""docs/tutorial.md: its printed commands, one after the other, as a newcomer types them;
docs/run_folder.md names what they wrote."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "tutorial.md").read_text(encoding="utf-8")
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
    assert unnamed(tmp_path / "first") == []
    assert len(list((tmp_path / "outputs" / "default").glob("*/summary.json"))) >= 3


def unnamed(run: Path) -> list[str]:
    """Files of a run folder, and keys in them, that docs/run_folder.md does not name."""
    page = (DOCS / "run_folder.md").read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`]+)`", page)
    named = {word for text in quoted for word in (*re.findall(r"\w+", text), text.rstrip("/"))}
    summary = json.loads((run / "summary.json").read_text())
    partition = json.loads((run / "partition.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    keys = {
        *(path.name for path in run.iterdir()),
        *summary,
        *summary["seconds"],
        *summary["accuracy"],
        *summary["accuracy"]["personal"],
        *(key for line in lines for key in json.loads(line)),
        *(run / "clients.csv").read_text().splitlines()[0].split(","),
        *("scheme", "class_names", "notes", "clients"),
        *partition["clients"][0],
    }
    return sorted(keys - named)
