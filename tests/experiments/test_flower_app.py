"""The ServerApp that ``flwr run`` starts: what a person does wrong is told in a line."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from flwr.app import Context, RecordDict
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

import experiments.flower_app as flower_app
from experiments.flower_simulation import Failed
from experiments.runtimes.local_processes import ROOT, free_port
from experiments.superexec import flower
from fedpgp.errors import FedPGPError


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a ServerApp changes in its process."""
    monkeypatch.setattr(flower_app, "end_with_parent", lambda: None)
    logger = logging.getLogger("flwr")
    level = logger.level
    yield
    logger.setLevel(level)


def run(grid: object, overrides: object = "") -> None:
    context = Context(1, 0, {}, RecordDict(), {"overrides": overrides})
    flower_app.app(grid, context)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("methd=coop", "method"),
        ("clients=0", "clients=0 cannot work"),
        ("clients='2", "No closing quotation"),
        ("resume=/nowhere", "/nowhere is no run's folder"),
        ("runtime=ray", "runtime=ray"),
        (3, "cannot read '3'"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(overrides, said, capsys):
    """Flower's own account of the error, with its traceback, goes to its logger."""
    with pytest.raises(FedPGPError):
        run(SimpleNamespace(), overrides)
    told = capsys.readouterr()
    assert told.out.startswith("error: ") and told.out.count("\n") == 1 and said in told.out
    assert "Traceback" not in told.out + told.err
    assert not logging.getLogger("flwr").isEnabledFor(logging.ERROR)


def simulation_grid() -> InMemoryGrid:
    """The grid of Flower's own simulation."""
    return InMemoryGrid(
        state_factory=LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("methd=coop", "did you mean method"),
        ("clients='2", "No closing quotation"),
    ],
)
def test_a_mistake_in_a_simulation_is_one_line_too(overrides, said, capsys):
    with pytest.raises(FedPGPError):
        run(simulation_grid(), overrides)
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("error: ") and said in told[-1]
    assert len(told) <= 2 and not any("Traceback" in line for line in told)


def test_a_simulation_says_where_it_works_and_what_it_is(tmp_path, monkeypatch, capsys):
    """The overrides are those of experiments.run; here a run that is there already."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failed, match="exit status 2"):
        run(simulation_grid(), "run_dir=run rounds=1")
    first, said = capsys.readouterr().out.splitlines()
    assert first == f"in {tmp_path}: python -m experiments.run run_dir=run rounds=1"
    assert said.startswith("error: ") and "run" in said


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch, capsys):
    """The SuperLink of Flower's making outlives the folder it was started in."""
    here = os.getcwd()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(FedPGPError):
            run(simulation_grid())
    finally:
        os.chdir(here)
    (said,) = capsys.readouterr().out.splitlines()
    assert "is gone" in said and "flower-superlink --simulation" in said


@pytest.mark.slow
def test_flwr_run_simulates_to_a_run_folder(tmp_path):
    """With a SuperLink of Flower's own making, from a folder of the user's; a
    mistake ends with its line."""
    ports = {
        name: str(free_port())
        for name in ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")
    }
    environment = {
        **os.environ,
        **ports,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "FLWR_HOME": str(tmp_path / "flwr"),
        "RAY_ADDRESS": "local",  # Ray would join the last cluster of this machine, gone or not
        # it would fetch the whole environment anew
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    command = [flower("flwr"), "run", str(ROOT), "--stream", "--run-config"]

    def said(overrides: str) -> str:
        words = [*command, f'overrides="{overrides}"']
        options = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
        done = subprocess.run(words, timeout=250, **options)
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout

    try:
        told = said("rounds=1 clients=6 run_dir=here")
        mistaken = said("rounds=-1")
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if set(ports.values()) & {
                word.rpartition(":")[2] for word in process.info["cmdline"] or ()
            }:
                process.kill()
    assert f"in {tmp_path}: python -m experiments.run" in told and "round 1/1" in told
    assert "run folder: here" in told
    assert json.loads((tmp_path / "here" / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "here" / "report.html").stat().st_size > 10_000
    assert "error: rounds=-1" in mistaken
