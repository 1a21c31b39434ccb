"""Locks between processes: real ones, on a file."""

import contextlib
import multiprocessing
import os
import time

import pytest

from fedpgp.errors import FedPGPError
from fedpgp.locks import file_lock

FORK = multiprocessing.get_context("fork")


def take(path, shared: bool, outcome) -> None:
    try:
        with file_lock(path, shared=shared, wait=0, busy="it is held"):
            outcome.put("held")
    except FedPGPError as error:
        outcome.put(str(error))


def taken_elsewhere(path, shared: bool = False) -> str:
    outcome = FORK.Queue()
    process = FORK.Process(target=take, args=(path, shared, outcome))
    process.start()
    said = outcome.get(timeout=30)
    process.join()
    return said


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (False, False, "it is held"),
        (False, True, "it is held"),
        (True, False, "it is held"),
        (True, True, "held"),
    ],
)
def test_who_may_hold_it_together(tmp_path, first, second, said):
    with file_lock(tmp_path / ".lock", shared=first):
        assert taken_elsewhere(tmp_path / ".lock", second) == said
    assert taken_elsewhere(tmp_path / ".lock", second) == "held"


def test_a_lock_that_is_let_go_in_time_is_had(tmp_path):
    process = FORK.Process(target=hold, args=(tmp_path / ".lock", 0.3))
    process.start()
    while not (tmp_path / "holds").exists():
        time.sleep(0.01)
    with file_lock(tmp_path / ".lock", wait=20, busy="too long"):
        process.join()


def hold(path, seconds: float) -> None:
    with file_lock(path):
        (path.parent / "holds").touch()
        time.sleep(seconds)


def test_a_file_that_cannot_be_opened_is_named_and_the_body_keeps_its_own_errors(tmp_path):
    gone = tmp_path / "gone" / ".lock"
    with pytest.raises(FedPGPError, match=f"cannot write {gone}"), file_lock(gone):
        pass
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / ".lock"):
        open(tmp_path / "gone")  # noqa: SIM115


def test_a_private_lock_is_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        with contextlib.suppress(FedPGPError), file_lock(tmp_path / ".lock", private=True):
            assert (tmp_path / ".lock").stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)
