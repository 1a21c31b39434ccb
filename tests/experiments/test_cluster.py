"""A Ray cluster of two nodes on loopback: both train, and one may die."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from experiments.runtimes.local_processes import free_port
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.experiments.test_resume import ROOT, launch, results, wait_for

RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture
def cluster(tmp_path_factory, monkeypatch):
    """(address, process of the second node's raylet). Two nodes with one core each, and a
    token (docs/cluster.md)."""
    token = tmp_path_factory.mktemp("token") / "ray_token"
    token.write_text(f"{secrets.token_hex(32)}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    port = free_port()
    common = [
        "--num-cpus=1",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        "--object-store-memory=80000000",
    ]
    started: list[subprocess.Popen] = []
    log = tmp_path_factory.mktemp("cluster") / "said"
    # In the foreground, each in a session of its own: ended by its process group, and nobody else's
    # Ray is touched. Where Ray looks for a running cluster by itself, it is not to find this one.
    folder = tempfile.mkdtemp(dir="/tmp")
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    for options in (head, [f"--address=127.0.0.1:{port}"]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with log.open("w") as said:
            started.append(
                subprocess.Popen(
                    [RAY, "start", *options, *common, "--block"],
                    env=environment,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        latest = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text() and time.monotonic() < latest:
            time.sleep(0.2)
    try:
        yield f"127.0.0.1:{port}", started[1]
    finally:
        for process in started:
            members = (
                psutil.Process(process.pid).children(recursive=True)
                if process.poll() is None
                else []
            )
            for member in [*members, process]:
                try:
                    member.kill()
                except (psutil.Error, ProcessLookupError):
                    continue
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def placed(run_dir: Path) -> dict[str, int]:
    return json.loads((run_dir / "machines.json").read_text())["trained_on"]


@pytest.mark.slow
def test_both_nodes_train(cluster, tmp_path):
    """The same numbers as in one process, and the report says who trained how many."""
    address, _ = cluster
    process = launch(
        "start", tmp_path / "ray", "runtime=ray", f"runtime.address={address}", "participation=1"
    )
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    inline = launch("start", tmp_path / "inline", "participation=1")
    inline.communicate(timeout=120)
    counts = placed(tmp_path / "ray")
    assert len(counts) == 2 and sum(counts.values()) == 6 * 3 and min(counts.values()) >= 3, counts
    page = (tmp_path / "ray" / "report.html").read_text()
    assert all(machine in page for machine in counts)
    assert results(tmp_path / "ray")["clients"] == results(tmp_path / "inline")["clients"]


@pytest.mark.slow
def test_a_node_that_dies_does_not_stop_the_run(cluster, tmp_path):
    """Its clients are done elsewhere, or dropped with a reason; the run ends well."""
    address, second = cluster
    process = launch(
        "start",
        tmp_path / "ray",
        *(
            "runtime=ray",
            f"runtime.address={address}",
            "participation=1",
            "rounds=4",
            "runtime.round_timeout=60",
        ),
        faults={"slow": 2},
    )
    wait_for(process, "round 1/4")
    os.killpg(second.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=290)
    assert process.returncode == 0, output
    tensors, info = read_checkpoint(checkpoints(tmp_path / "ray" / "checkpoint")[-1])
    assert info["round"] == 4 and (tensors["committed"] == 4).all()


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_says_where_it_comes_from(cluster, tmp_path, monkeypatch):
    """Ray itself says only that it cannot connect."""
    address, _ = cluster
    monkeypatch.delenv("RAY_AUTH_MODE")
    process = launch("start", tmp_path / "ray", "runtime=ray", f"runtime.address={address}")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "RAY_AUTH_TOKEN_PATH (docs/cluster.md)" in output
