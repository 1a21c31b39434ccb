"""A run that was stopped or killed resumes to the same numbers, to the bit with one worker."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from clients import state_shards
from clients.private_state import PrivateStore, Superseded, owner
from experiments.run_folder import RunFolder
from experiments.runner import resume, start
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from tests.helpers.small import small_config, small_federation

ROOT = Path(__file__).resolve().parents[2]


def launch(
    verb: str, run_dir: Path, *overrides: str, faults: dict | None = None
) -> subprocess.Popen:
    # Not -m: Ray's workers have to find the functions in a module of that name.
    code = "import sys; from tests.helpers.small import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-u",
        "-c",
        code,
        verb,
        str(run_dir),
        json.dumps(faults or {}),
        *overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, start_new_session=True, **streams
    )


def wait_for(process: subprocess.Popen, text: str) -> None:
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} never came:\n{''.join(seen)}")


def results(run_dir: Path) -> dict:
    """All that must be equal: tensors, metrics without times, clients.csv, accuracy, bytes."""
    tensors, _ = read_checkpoint(checkpoints(run_dir / "checkpoint")[-1])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text())
    keep = ("status", "accuracy", "bytes_up", "bytes_down")
    return {
        "tensors": {name: tensor.tobytes() for name, tensor in tensors.items()},
        "metrics": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        "clients": list(csv.reader((run_dir / "clients.csv").open())),
        "summary": {key: summary[key] for key in keep},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    start(small_config(run_dir), federation_of=small_federation)
    return run_dir


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that ended by kill -9 inside the training of round 3, and whose fault is mended."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    process = launch("start", run_dir, faults={"kill_server_at": 3})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, output
    assert not (run_dir / "summary.json").exists()
    mend(run_dir)
    return run_dir


@pytest.fixture
def killed(made, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_killed_in_the_middle_and_gone_on_with(killed, whole):
    """No stale lock, and the same as never killed."""
    resume(killed, federation_of=small_federation)
    assert results(killed) == results(whole)


def test_a_line_written_after_the_last_checkpoint_is_taken_back(killed, whole):
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "round": 3, "lo')
    resume(killed, federation_of=small_federation)
    assert results(killed) == results(whole)


def test_killed_before_anything_was_saved(tmp_path, whole):
    config = {**small_config(tmp_path / "run"), "run_dir": str(tmp_path / "run"), "resume": None}
    RunFolder.create(tmp_path / "run", config, "")
    resume(tmp_path / "run", federation_of=small_federation)
    assert results(tmp_path / "run") == results(whole)


def test_a_damaged_checkpoint_costs_a_round(tmp_path, whole, capsys):
    start(small_config(tmp_path / "run"), federation_of=small_federation)
    newest = checkpoints(tmp_path / "run" / "checkpoint")[-1]
    data = bytearray(newest.read_bytes())
    data[-10] ^= 1
    newest.write_bytes(bytes(data))
    (tmp_path / "run" / "summary.json").unlink()  # killed before it was written
    resume(tmp_path / "run", federation_of=small_federation)
    assert f"the checkpoint {newest} is damaged" in capsys.readouterr().out
    assert results(tmp_path / "run") == results(whole)


def test_the_same_with_private_states_in_shards(tmp_path, whole, monkeypatch):
    """Begun, and resumed from the round before the last, whose states are there too."""
    run = tmp_path / "run"
    monkeypatch.setattr(state_shards, "SIZE", 4)
    monkeypatch.setattr(state_shards, "file_system", lambda folder: "ext4")
    start(small_config(run), federation_of=small_federation)
    assert results(run) == results(whole)
    checkpoints(run / "checkpoint")[-1].unlink()
    (run / "summary.json").unlink()
    resume(run, federation_of=small_federation)
    assert results(run) == results(whole)
    ours, theirs = (PrivateStore(folder / "private", "", 0) for folder in (run, whole))
    for client in range(6):
        states = ours.states(client), theirs.states(client)
        assert states[0].keys() == states[1].keys()
        for server_round, state in states[1].items():
            for name, tensor in state.items():
                assert states[0][server_round][name].equal(tensor)
    shards = {path.name.partition("-")[0] for path in (run / "private" / "shards").iterdir()}
    assert shards == {"clients_00000.sqlite", "clients_00004.sqlite"}
    assert not list((run / "private").glob("client_*"))


@pytest.mark.parametrize("also", [(), ("images",)])
def test_a_run_of_an_older_version(killed, whole, also):
    """Its checkpoints lack what was added since: it is resumed to the same numbers,
    or refused in a line."""
    for path in checkpoints(killed / "checkpoint"):
        tensors, info = read_checkpoint(path)
        for name in ("placed", "data", "model_sha256", *also):
            del info[name]
        save_checkpoint(path.parent, info.pop("round"), tensors, {**info, "format": 2})
    if also:
        with pytest.raises(
            FedPGPError, match="written by another version of fedpgp .they lack images"
        ):
            resume(killed, federation_of=small_federation)
    else:
        resume(killed, federation_of=small_federation)
        assert results(killed) == results(whole)


def test_a_damaged_and_then_lost_record_of_attempts(killed, whole):
    """Damaged, it is said what to do; lost, the run is resumed."""
    record = killed / "private" / "attempt.json"
    record.write_text('{"run"')
    with pytest.raises(
        FedPGPError, match=f"{record} is damaged .*remove it and resume with resume="
    ):
        resume(killed, federation_of=small_federation)
    record.unlink()
    resume(killed, federation_of=small_federation)
    assert results(killed) == results(whole)


def test_a_finished_run_stays_as_it_is(tmp_path, capsys):
    """Not a byte changes, its recorded seconds least of all."""
    start(small_config(tmp_path / "run", "rounds=1"), federation_of=small_federation)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _files(tmp_path)}
    capsys.readouterr()
    summary = resume(tmp_path / "run", {"verbose": False}, federation_of=small_federation)
    said = capsys.readouterr().out
    assert (
        said.startswith(f"finished already: {tmp_path / 'run'} (1 round)")
        and "setting up" not in said
    )
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _files(tmp_path)
    } == before
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(tmp_path, whole, number, code):
    """It stops at once, saved, says how to resume, and resumes to the same end."""
    process = launch("start", tmp_path / "run", faults={"slow": 1.5})
    wait_for(process, "round 1/3")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert (
        f"python -m experiments.run resume={tmp_path / 'run'}" in output
        and "Traceback" not in output
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    mend(tmp_path / "run")
    resume(tmp_path / "run", federation_of=small_federation)
    assert results(tmp_path / "run") == results(whole)


def test_two_runs_in_one_folder_are_refused(killed):
    """And a run that was killed leaves no stale lock."""
    with RunFolder(killed).locked():
        with pytest.raises(FedPGPError, match="another process is at work"):
            resume(killed, federation_of=small_federation)
        with pytest.raises(FedPGPError, match="exists already; resume it by resume="):
            start(small_config(killed), federation_of=small_federation)


def test_a_deadline_that_cannot_be_kept_is_refused(tmp_path):
    start(small_config(tmp_path / "run", "rounds=1"), federation_of=small_federation)
    (tmp_path / "run" / "summary.json").unlink()
    runtime = RunFolder.open(tmp_path / "run")[1]["runtime"]
    with pytest.raises(FedPGPError, match="round_timeout cannot be kept with runtime=inline"):
        resume(
            tmp_path / "run",
            {"runtime": {**runtime, "round_timeout": 60}},
            federation_of=small_federation,
        )


def test_a_configuration_edited_by_hand_is_refused(tmp_path):
    start(small_config(tmp_path / "run", "rounds=1"), federation_of=small_federation)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.03", "lr: 0.2"))
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(
        FedPGPError, match=r"another configuration: lr \(0.03 in the checkpoint, 0.2 now\)"
    ):
        resume(tmp_path / "run", federation_of=small_federation)


def test_the_same_on_ray_and_after_a_kill(tmp_path, whole):
    """Two workers, kill -9 of the driver in the middle; the workers end by themselves and never
    write again; resumed on Ray.
    """
    process = launch(
        "start", tmp_path / "run", "runtime=ray", "runtime.workers=2", faults={"slow": 1.5}
    )
    wait_for(process, "round 1/3")
    # All of them: a Ray worker takes its name when it pleases.
    family = psutil.Process(process.pid).children(recursive=True)
    assert "raylet" in {one.name() for one in family}
    time.sleep(0.5)
    process.kill()
    process.communicate()
    run, attempt = owner(tmp_path / "run" / "private")
    mend(tmp_path / "run")
    gone_on = launch("resume", tmp_path / "run")
    output, _ = gone_on.communicate(timeout=240)
    assert gone_on.returncode == 0, output
    assert not re.search("Traceback|raylet|Deprecat", output), output
    psutil.wait_procs(family, timeout=60)
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(Superseded):
        PrivateStore(tmp_path / "run" / "private", run, attempt).save(0, 3, {}, 0)
    ours, theirs = (
        read_checkpoint(checkpoints(folder / "checkpoint")[-1])[0]
        for folder in (tmp_path / "run", whole)
    )
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)
    assert results(tmp_path / "run")["clients"] == results(whole)["clients"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_client_that_kills_or_hangs_its_worker(tmp_path, fault):
    process = launch(
        "start",
        tmp_path / "run",
        "runtime=ray",
        "rounds=2",
        "participation=1",
        "runtime.round_timeout=40",
        faults={fault: [2], "round": 1},
    )
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    first, second = [line for line in lines if line["kind"] == "train"]
    assert 2 in [entry["client"] for entry in first["dropped"]] and second["dropped"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_on_ray(tmp_path, number, code):
    """Ctrl-C reaches every process of the terminal's group, Ray's too."""
    process = launch("start", tmp_path / "run", "runtime=ray", faults={"slow": 300})
    wait_for(process, "round 0/3")
    time.sleep(2)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "resume=" in output and "Traceback" not in output


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def mend(run_dir: Path) -> None:
    """Takes the fault out of a run's configuration, as fixing the machine would."""
    (run_dir / "config.yaml").write_text(
        re.sub(r"faults:\n(    .*\n)+", "faults: {}\n", (run_dir / "config.yaml").read_text())
    )
    for path in checkpoints(run_dir / "checkpoint"):
        tensors, info = read_checkpoint(path)
        info["config"]["dataset"]["faults"] = {}
        save_checkpoint(path.parent, info.pop("round"), tensors, info)
