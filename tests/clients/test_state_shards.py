"""Private states in shards: what is asked of files (test_private_state.py), and of SQLite."""

import multiprocessing
import os
import random
import signal
import sqlite3
import threading

import pytest
import torch

from clients import state_shards
from clients.private_state import PrivateStore, Superseded
from clients.state_shards import SIZE, shards_for
from fedpgp.errors import FedPGPError

STATE = {"U": torch.arange(4.0).reshape(2, 2), "step": torch.tensor(3)}


def store(folder, attempt=1, clients=SIZE + 1):
    made = PrivateStore(folder, "run", attempt)
    made.claim(clients)
    return made


def same(found, state=STATE) -> bool:
    return {*found} == {*state} and all(
        torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype
        for name in state
    )


def test_states_come_back_exactly_and_a_thousand_clients_are_a_file(tmp_path):
    private = store(tmp_path)
    other = {"V": torch.full((3,), 0.5, dtype=torch.bfloat16)}
    private.save(SIZE - 1, 1, STATE, committed=0)
    private.save(SIZE, 1, other, committed=0)
    private.save(SIZE, 2, {}, committed=1)
    private.flush()
    again = PrivateStore(tmp_path, "run", 0)
    assert same(again.load(SIZE - 1, 1)) and same(again.load(SIZE, 1), other)
    assert again.load(SIZE, 2) == {} and again.load(5, 0) is None
    assert list(again.states(SIZE)) == [1, 2] and again.states(7) == {}
    with pytest.raises(FedPGPError, match="client 7 after round 2 is not there: .*00000.sqlite"):
        again.load(7, 2)
    names = {path.name.partition("-")[0] for path in (tmp_path / "shards").iterdir()}
    assert names == {"clients_00000.sqlite", "clients_01000.sqlite"}


def test_the_same_rounds_are_kept_as_with_files(tmp_path):
    """Whatever was committed of what was trained."""
    shards, files = (
        store(tmp_path / "shards", clients=2),
        PrivateStore(tmp_path / "files", "run", 1),
    )
    files.claim()
    draw = random.Random(0)
    committed, server_round = [0, 0], 0
    for _ in range(40):
        server_round += draw.randint(1, 2)
        client = draw.randrange(2)
        for private in (shards, files):
            private.save(client, server_round, STATE, committed[client])
        if draw.random() < 0.6:
            committed[client] = server_round
        kept = list(files.states(client))
        assert list(shards.states(client)) == kept and {committed[client]} - {0} <= {*kept}


def test_nobody_else_reads_a_shard(tmp_path):
    """Nor its log; whatever the umask."""
    before = os.umask(0)
    try:
        private = store(tmp_path / "private")
        private.save(0, 1, STATE, committed=0)
    finally:
        os.umask(before)
    paths = [tmp_path / "private", *(tmp_path / "private").rglob("*")]
    assert {"clients_00000.sqlite-wal", "clients_00000.sqlite-shm"} <= {p.name for p in paths}
    assert not [path for path in paths if path.stat().st_mode & 0o077]


def test_a_state_that_is_removed_is_not_left_in_the_file(tmp_path):
    private = store(tmp_path, clients=1)
    for server_round, letter in ((1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")):
        state = {"U": torch.frombuffer(bytearray(letter * 9000), dtype=torch.uint8)}
        private.save(0, server_round, state, committed=server_round - 1)
    private.tidy()
    found = (tmp_path / "shards" / "clients_00000.sqlite").read_bytes()
    assert [letter * 400 in found for letter in (b"a", b"b", b"c", b"d")] == [
        False,
        True,
        True,
        True,
    ]


def test_nor_in_the_log_of_a_run_that_was_killed_when_it_is_resumed(tmp_path):
    """An orphan still has the file open; SQLite keeps the log then."""
    orphan = store(tmp_path, clients=1)
    for server_round, letter in ((1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")):
        state = {"U": torch.frombuffer(bytearray(letter * 9000), dtype=torch.uint8)}
        orphan.save(0, server_round, state, committed=server_round - 1)
    log = tmp_path / "shards" / "clients_00000.sqlite-wal"
    assert b"a" * 400 in log.read_bytes()
    resumed = store(tmp_path, attempt=2, clients=1)
    found = [path for path in log.parent.iterdir() if b"a" * 400 in path.read_bytes()]
    assert not found and list(resumed.states(0)) == list(orphan.states(0))


def test_a_flipped_bit_is_noticed(tmp_path):
    """A state comes back as it was, or an error names the file."""
    private = store(tmp_path, clients=3)
    states = {c: {"U": torch.full((600,), float(c))} for c in range(3)}
    for client, state in states.items():
        private.save(client, 1, state, committed=0)
    private.tidy()
    del private  # and its connection
    path = tmp_path / "shards" / "clients_00000.sqlite"
    whole, refused = path.read_bytes(), 0
    for place in random.Random(0).sample(range(len(whole)), 300):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        for client, state in states.items():
            try:
                assert same(PrivateStore(tmp_path, "run", 1).load(client, 1), state), place
            except FedPGPError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"not a database" * 99, None])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content):
    private = store(tmp_path)
    private.save(SIZE, 1, STATE, committed=0)
    private.tidy()
    del private
    path = tmp_path / "shards" / "clients_01000.sqlite"
    if content is None:
        path.unlink()
        with pytest.raises(FedPGPError, match=f"not there: {path}"):
            PrivateStore(tmp_path, "run", 1).load(SIZE, 1)
    else:
        path.write_bytes(content)
    said = f"of 1000 clients, from client 1000 on, cannot be read: {path} .* restore this file"
    with pytest.raises(FedPGPError, match=said):
        PrivateStore(tmp_path, "run", 1).save(SIZE, 2, STATE, committed=1)


def test_a_full_disk_is_named_and_the_states_before_are_there(tmp_path, monkeypatch):
    private = store(tmp_path, clients=1)
    private.save(0, 1, STATE, committed=0)
    connected = state_shards._connected

    def small(path):
        connection = connected(path)
        connection.execute("pragma max_page_count = 4")  # SQLite's own limit gives its own error
        return connection

    monkeypatch.setattr(state_shards, "_connected", small)
    private = PrivateStore(tmp_path, "run", 1)
    with pytest.raises(FedPGPError, match="no space left on the disk while writing .*00000.sqlite"):
        private.save(0, 2, {"U": torch.zeros(9000)}, committed=1)
    assert list(private.states(0)) == [1] and same(private.load(0, 1))


def test_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    private = store(tmp_path, clients=1)
    private.save(0, 1, STATE, committed=0)
    private.tidy()
    del private
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    private = PrivateStore(tmp_path, "run", 1)
    assert same(private.load(0, 1)) and len(list((tmp_path / "shards").iterdir())) == 1
    with pytest.raises(FedPGPError, match="cannot write .*clients_00000.sqlite"):
        private.save(0, 2, STATE, committed=1)


def test_an_orphan_of_an_earlier_attempt_cannot_write(tmp_path):
    orphan = store(tmp_path, attempt=1)
    orphan.save(0, 1, STATE, committed=0)
    after = store(tmp_path, attempt=2)
    with pytest.raises(Superseded):
        orphan.save(0, 2, STATE, committed=1)
    assert list(after.states(0)) == [1]


def test_two_that_write_to_one_file_wait_for_each_other(tmp_path):
    store(tmp_path)

    def write(first: int) -> None:
        private = PrivateStore(tmp_path, "run", 1)
        for client in range(first, 200, 2):
            private.save(client, 1, {"U": torch.tensor([client])}, committed=0)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    private = PrivateStore(tmp_path, "run", 1)
    assert [private.load(client, 1)["U"].item() for client in range(200)] == list(range(200))


def _save_for_ever(folder: str, told) -> None:
    private = PrivateStore(folder, "run", 1)
    for server_round in range(1, 10**6):
        for client in range(3):
            state = {"U": torch.full((2000,), float(server_round))}
            private.save(client, server_round, state, committed=server_round - 1)
            told.send((client, server_round))


def test_what_was_saved_outlives_the_process_that_is_killed(tmp_path):
    """At any moment, which the server resumes from."""
    store(tmp_path, clients=3).save(0, 1, STATE, committed=0)
    context = multiprocessing.get_context("spawn")
    told, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_save_for_ever, args=(str(tmp_path), sender))
    worker.start()
    sender.close()
    newest = [told.recv() for _ in range(200)][-1]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    while told.poll():
        try:
            newest = told.recv()
        except EOFError:
            break
    resumed = store(tmp_path, attempt=2, clients=3)
    client, server_round = newest
    for other in range(3):
        last = server_round if other <= client else server_round - 1
        for each in (last, last - 1):
            assert (resumed.load(other, each)["U"] == each).all()
    with sqlite3.connect(tmp_path / "shards" / "clients_00000.sqlite") as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_clients_that_join_get_a_file(tmp_path):
    store(tmp_path, clients=SIZE).save(0, 1, STATE, committed=0)
    private = store(tmp_path, attempt=2, clients=SIZE + 1)
    private.save(SIZE, 1, STATE, committed=0)
    assert same(private.load(0, 1)) and same(private.load(SIZE, 1))


def test_a_run_keeps_shards_where_they_pay_and_are_safe(tmp_path, monkeypatch):
    kinds = {"new": True, "one_machine": True}
    monkeypatch.setattr(state_shards, "file_system", lambda folder: "ext4")
    assert shards_for(SIZE, tmp_path, **kinds) == 0
    assert shards_for(SIZE + 1, tmp_path, **kinds) == SIZE + 1
    assert shards_for(SIZE + 1, tmp_path, **{**kinds, "one_machine": False}) == 0
    # A run of an earlier version has files, and stays with them.
    assert shards_for(SIZE + 1, tmp_path, **{**kinds, "new": False}) == 0
    for kind in ("nfs4", "9p", None):
        monkeypatch.setattr(state_shards, "file_system", lambda folder, kind=kind: kind)
        assert shards_for(SIZE + 1, tmp_path, **kinds) == 0


def test_a_run_with_shards_is_not_resumed_where_they_are_not_safe(tmp_path, monkeypatch):
    store(tmp_path)
    again = {"new": False, "one_machine": True}
    monkeypatch.setattr(state_shards, "file_system", lambda folder: "ext4")
    assert shards_for(SIZE + 1, tmp_path, **again) == SIZE + 1
    with pytest.raises(FedPGPError, match="resume without runtime.address"):
        shards_for(SIZE + 1, tmp_path, new=False, one_machine=False)
    monkeypatch.setattr(state_shards, "file_system", lambda folder: "nfs4")
    with pytest.raises(FedPGPError, match="disk of type nfs4; copy the run's folder"):
        shards_for(SIZE + 1, tmp_path, **again)
