"""A run folder that an older version wrote is read by every command, or refused in one line."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from experiments.resume_rules import changed_on_resume
from experiments.run import main
from experiments.settings import composed
from strategies import checkpoint as module
from strategies.checkpoint import checkpoints, read_checkpoint, save_checkpoint

OLD = Path(__file__).resolve().parents[1] / "golden" / "old_run"


@pytest.fixture
def old(tmp_path) -> Path:
    """The old run, in a folder that may be written to."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.fixture
def commands(old, tmp_path) -> dict[str, list[str]]:
    """Command -> the arguments with which it reads the run's checkpoint."""
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64), "red").save(image)
    of_client = ["--run", str(old), "--client", "1"]
    return {
        "predict": [*of_client, str(image)],
        "export": [*of_client, "--to", str(tmp_path / "classifier")],
        "evaluate": ["--run", str(old)],
        "run": [f"resume={old}", "rounds=3"],
    }


def test_it_is_read(old, commands, tmp_path, capsys):
    before = json.loads((old / "summary.json").read_text())["accuracy"]
    report = importlib.import_module("experiments.report")
    assert report.main([str(old), "--format", "csv"]) == 0
    assert "fedpgp" in capsys.readouterr().out
    for name, arguments in commands.items():
        assert importlib.import_module(f"experiments.{name}").main(arguments) == 0, name
        capsys.readouterr()
    assert (tmp_path / "classifier" / "classifier.safetensors").exists()
    again = json.loads((old / "evaluations" / "own.json").read_text())["accuracy"]
    for model in ("zero_shot", "global", "personal"):
        for figure in ("local", "base", "novel"):
            # a single answer of few images may be another one in the last digit of a float
            assert again[model][figure] == pytest.approx(before[model][figure], abs=4)
    lines = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert json.loads((old / "summary.json").read_text())["rounds"] == 3


def test_one_that_was_killed_is_resumed(old, capsys):
    (old / "summary.json").unlink()
    assert main([f"resume={old}"]) == 0
    assert "resuming after round 2 of 2" in capsys.readouterr().out
    assert json.loads((old / "summary.json").read_text())["status"] == "finished"


def test_the_words_it_was_started_with_still_resume_it(old, capsys):
    """Its configuration lacks the groups and keys that came later; they are no change."""
    (old / "summary.json").unlink()
    assert main([f"resume={old}", "strategy=fedavg", "method=fedpgp"]) == 0
    stored = yaml.safe_load((old / "config.yaml").read_text())
    for key in ("privacy", "attack", "updates"):
        stored.pop(key, None)
    stored["strategy"] = {"name": "fedavg"}
    whole = ["experiment=smoke"]
    changed = changed_on_resume(whole, composed(whole), {**composed(whole), **stored})
    assert not [key for key in changed if key.startswith(("privacy", "attack", "updates"))]
    assert "strategy.wrap" not in changed
    assert changed_on_resume(["attack=sign_flip"], composed(["attack=sign_flip"]), stored)
    given = ["updates=[coarse]"]
    assert changed_on_resume(given, composed(given), stored) == ["updates"]
    assert not changed_on_resume(["updates=[]"], composed(["updates=[]"]), stored)


def test_a_format_that_is_too_old_is_refused_in_one_line(old, commands, capsys):
    path = checkpoints(old / "checkpoint")[-1]
    tensors, info = read_checkpoint(path)
    save_checkpoint(path.parent, info.pop("round"), tensors, {**info, "format": 1})
    for name, arguments in commands.items():
        assert importlib.import_module(f"experiments.{name}").main(arguments) == 2, name
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert said.startswith(f"error: the checkpoint {path} has format 1; this version"), name
        assert f"reads the formats {', '.join(map(str, (*module.OLDER, module.FORMAT)))}" in said
        assert "start the run anew" in said
    assert importlib.import_module("experiments.report").main([str(old)]) == 0
