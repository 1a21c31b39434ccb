"""The ServerApp that ``flwr run`` starts: what a person does wrong is told in a line."""

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
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

import experiments.flower_app as flower_app
from experiments.loopback import ROOT, free_port
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


def test_flower_s_own_simulation_ends_at_once_with_the_commands_that_work(capsys):
    state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    with pytest.raises(FedPGPError):
        run(InMemoryGrid(state_factory=state))
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    for command in ("python -m experiments.run", "python -m experiments.deploy local --clients 5", "flwr run . NAME"):
        assert command in told


@pytest.mark.slow
def test_flwr_run_in_a_fresh_clone_ends(tmp_path):
    """A SuperLink of Flower's own making starts nodes that know nothing of their client."""
    ports = {name: str(free_port()) for name in ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")}
    environment = {
        **os.environ,
        **ports,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "FLWR_HOME": str(tmp_path),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # it would fetch the whole environment anew
    }
    command = [flower("flwr"), "run", str(ROOT), "--stream"]
    try:
        said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if set(ports.values()) & {word.rpartition(":")[2] for word in process.info["cmdline"] or ()}:
                process.kill()
    assert "error: " in said.stdout and "python -m experiments.run" in said.stdout
    assert "Traceback" not in said.stdout + said.stderr
