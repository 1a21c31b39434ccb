"""A disk that is full, or cannot be written: a clear error, nothing that was computed is lost."""

import errno
import subprocess
import threading
import time
from pathlib import Path

import pytest

from experiments.runner import resume, start
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, latest_checkpoint
from tests.experiments.test_resume import results
from tests.helpers.small import small_config, small_federation


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def when_round_is_saved(run: Path, server_round: int, then) -> threading.Thread:
    def wait() -> None:
        while not (run / "checkpoint" / f"round_{server_round:05d}.safetensors").exists():
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_disk_that_fills_up_in_the_middle(disk, tmp_path):
    filler, run = disk / "filler", disk / "run"

    def fill() -> None:
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 512)
            except OSError as error:
                assert error.errno == errno.ENOSPC

    thread = when_round_is_saved(run, 1, fill)
    with pytest.raises(FedPGPError, match="no space left on the disk while writing .*/run/"):
        start(small_config(run, "rounds=4", faults={"slow": 0.3}), federation_of=small_federation)
    thread.join(10)
    saved = latest_checkpoint(run / "checkpoint", print)
    assert saved is not None and 1 <= saved[1]["round"] < 4
    filler.unlink()
    resume(run, federation_of=small_federation)
    start(small_config(tmp_path / "whole", "rounds=4"), federation_of=small_federation)
    ours, theirs = results(run), results(tmp_path / "whole")
    assert (
        ours["tensors"] == theirs["tensors"]
        and ours["summary"]["accuracy"] == theirs["summary"]["accuracy"]
    )


def test_a_disk_that_cannot_be_written(disk):
    run = disk / "run"
    start(small_config(run, "rounds=1"), federation_of=small_federation)
    (run / "summary.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(FedPGPError, match="cannot write .*: Read-only file system"):
        start(small_config(disk / "other"), federation_of=small_federation)
    with pytest.raises(FedPGPError, match="cannot write .*: Read-only file system"):
        resume(run, federation_of=small_federation)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    resume(run, federation_of=small_federation)
    assert checkpoints(run / "checkpoint")


def test_a_metrics_file_that_was_cut_is_named(tmp_path):
    start(small_config(tmp_path / "run", "rounds=1"), federation_of=small_federation)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(FedPGPError, match="metrics.jsonl is shorter than the checkpoint says"):
        resume(tmp_path / "run", federation_of=small_federation)


def test_of_two_that_start_at_once_one_gets_the_folder(tmp_path):
    said: list[str] = []
    config = small_config(tmp_path / "run", "rounds=1")

    def run() -> None:
        try:
            start(config, federation_of=small_federation)
            said.append("ran")
        except FedPGPError as error:
            said.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said.count("ran") == 1, said
    assert all(
        "exists already" in text or "another process" in text for text in said if text != "ran"
    ), said
