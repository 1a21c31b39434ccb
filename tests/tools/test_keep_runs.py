"""Keeping runs: what is kept is what was measured, without a path of the machine."""

import json

import pytest

from experiments.reporting import measured, read_run
from fedpgp.errors import FedPGPError
from tests.helpers.written import write_run
from tools import keep_runs


def test_a_kept_run_has_its_figures_and_no_path(tmp_path, monkeypatch):
    monkeypatch.setattr(keep_runs, "MEASURED", tmp_path / "measured")
    swept = "python -m experiments.run -m method=coop,promptfl seed=1,2 run_dir=/data/here"
    for method in ("coop", "promptfl"):
        for seed in (1, 2):
            write_run(tmp_path / "runs" / method / str(seed), method, seed, command=swept)
    write_run(tmp_path / "runs" / "stopped", "fedpgp", 1, status="interrupted")
    (path,) = keep_runs.keep([tmp_path / "runs"])
    keep_runs.keep([tmp_path / "runs" / "coop"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["run"] for row in rows] == [
        *("method=coop,seed=1", "method=coop,seed=2"),
        *("method=promptfl,seed=1", "method=promptfl,seed=2"),
    ]
    assert str(tmp_path) not in path.read_text() and "/data" not in path.read_text()
    assert rows[0]["config"]["command"] == "python -m experiments.run method=coop seed=1"
    recorded = read_run(tmp_path / "runs" / "coop" / "1").summary
    assert rows[0]["summary"] == measured.compacted(recorded)
    assert rows[0]["summary"]["accuracy"]["personal"] == {
        key: value for key, value in recorded["accuracy"]["personal"].items() if value is not None
    }


@pytest.mark.parametrize(
    ("pretrained", "kept"),
    [("openai", "openai"), ("dfn2b", "dfn2b"), ("ViT-B-16.pt", None), ("~/weights/b16", None)],
)
def test_a_tag_of_weights_is_kept_and_a_file_is_not(pretrained, kept):
    config = {"model": {"name": "ViT-B-16", "pretrained": pretrained}}
    assert keep_runs.without_paths(config)["model"] == {"name": "ViT-B-16", "pretrained": kept}


def test_a_run_that_began_with_another_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(keep_runs, "MEASURED", tmp_path / "measured")
    write_run(tmp_path / "run", "fedpgp", 1, init_from="runs/other")
    with pytest.raises(FedPGPError, match="init_from"):
        keep_runs.keep([tmp_path / "run"])
    assert not (tmp_path / "measured").exists()
