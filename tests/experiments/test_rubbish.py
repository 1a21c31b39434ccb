"""Files of a run's folder that hold rubbish are one line, and no traceback."""

import pytest

from experiments.folder import RunFolder
from experiments.run import main
from fedpgp.errors import FedPGPError

RUBBISH = {"bytes": b"\xff\xfe\0", "list": b"[1]", "text": b"words", "half": b'{"a": '}


@pytest.mark.parametrize("name", ["config.yaml", "parts.yaml"])
@pytest.mark.parametrize("what", [*RUBBISH, "folder"])
def test_a_configuration_of_rubbish_is_named(tmp_path, capsys, name, what):
    path = tmp_path / name
    path.mkdir() if what == "folder" else path.write_bytes(RUBBISH[what])
    assert main([f"resume={tmp_path}"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {path} ") and "\n" not in said


@pytest.mark.parametrize("what", RUBBISH)
def test_a_sweep_of_rubbish_is_named(tmp_path, capsys, what):
    (tmp_path / "sweep.json").write_bytes(RUBBISH[what])
    assert main(["-m", f"resume={tmp_path}"]) == 2
    assert f"{tmp_path} is no sweep's folder" in capsys.readouterr().err


@pytest.mark.parametrize("what", RUBBISH)
def test_figures_of_rubbish(tmp_path, what):
    (tmp_path / "summary.json").write_bytes(RUBBISH[what])
    assert RunFolder(tmp_path).summary() == {}
    (tmp_path / "metrics.jsonl").write_bytes(RUBBISH[what])
    with pytest.raises(FedPGPError, match=r"metrics.jsonl is damaged"):
        RunFolder(tmp_path).cut_metrics(len(RUBBISH[what]))
