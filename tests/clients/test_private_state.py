import errno
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from clients.private_state import PrivateStore, Superseded, finite, owner
from fedpgp.atomic_files import write_atomically
from fedpgp.errors import FedPGPError

STATE = {"U": torch.arange(4.0).reshape(2, 2), "step": torch.tensor(3)}


def store(folder, attempt=1, run="run"):
    made = PrivateStore(folder, run, attempt)
    made.claim()
    return made


def rounds(folder: Path, client: int) -> list[int]:
    return sorted(
        int(p.stem.split("_")[1])
        for p in (folder / f"client_{client:05d}").glob("round_*.safetensors")
    )


def test_a_state_comes_back_exactly(tmp_path):
    private = store(tmp_path)
    private.save(3, 1, STATE, committed=0)
    private.flush()
    loaded = private.load(3, 1)
    assert all(
        torch.equal(loaded[name], STATE[name]) and loaded[name].dtype == STATE[name].dtype
        for name in STATE
    )


def test_a_client_that_never_took_part_has_none(tmp_path):
    assert store(tmp_path).load(0, 0) is None


def test_a_missing_state_is_named(tmp_path):
    with pytest.raises(FedPGPError, match="client 7 after round 2 is not there"):
        store(tmp_path).load(7, 2)


def test_a_truncated_state_is_named(tmp_path):
    private = store(tmp_path)
    private.save(0, 1, STATE, committed=0)
    path = tmp_path / "client_00000" / "round_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FedPGPError, match="cannot be read"):
        private.load(0, 1)


def test_any_flipped_bit_is_noticed(tmp_path):
    """In the tensors, their names, types and shapes, or the checksum itself."""
    private = store(tmp_path)
    private.save(0, 1, STATE, committed=0)
    path = tmp_path / "client_00000" / "round_00001.safetensors"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            loaded = private.load(0, 1)
        except FedPGPError as error:
            assert "private state of client 0" in str(error) and str(path) in str(error)
        else:  # a bit of the header that says nothing: of its padding, or of the word "sha256"
            assert all(torch.equal(loaded[name], STATE[name]) for name in STATE), place
            assert place < len(whole) - 24


def test_a_state_of_an_earlier_version_has_no_checksum_and_is_read(tmp_path):
    private = store(tmp_path)
    path = tmp_path / "client_00000" / "round_00001.safetensors"
    path.parent.mkdir()
    path.write_bytes(save(STATE))
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in private.load(0, 1).items())


def test_nobody_else_reads_a_state(tmp_path):
    """Nor the configuration; whatever the umask, and in a folder that was open before."""
    folder = tmp_path / "site" / "state"
    before = os.umask(0)
    try:
        private = store(folder)
        private.give_configuration("{}")
        private.save(0, 1, STATE, committed=0)
    finally:
        os.umask(before)
    paths = [tmp_path / "site", folder, *folder.rglob("*")]
    assert len(paths) == 7 and not [path for path in paths if path.stat().st_mode & 0o077]
    folder.chmod(0o755)
    store(folder, attempt=2)
    assert folder.stat().st_mode & 0o077 == 0


def test_what_killed_writers_left_behind_is_removed_by_the_next_attempt(tmp_path):
    store(tmp_path).save(0, 1, STATE, committed=0)
    leftover = tmp_path / "client_00000" / ".round_00002.safetensors.0123abcd.tmp"
    leftover.touch()
    store(tmp_path)  # of the same attempt: somebody may be at work
    assert leftover.exists()
    store(tmp_path, attempt=2)
    assert not leftover.exists() and store(tmp_path, attempt=2).load(0, 1)


def test_what_the_last_two_checkpoints_need_is_kept(tmp_path):
    private = store(tmp_path)
    for server_round, committed in ((1, 0), (4, 1), (6, 4), (9, 6)):
        private.save(0, server_round, STATE, committed)
    assert rounds(tmp_path, 0) == [4, 6, 9]


def test_a_state_that_never_entered_the_average_is_dropped(tmp_path):
    private = store(tmp_path)
    private.save(0, 1, STATE, committed=0)
    private.save(0, 2, STATE, committed=1)  # its reply came too late: round 2 is never committed
    private.save(0, 3, STATE, committed=1)
    assert rounds(tmp_path, 0) == [1, 3]


def test_an_orphan_of_an_earlier_attempt_cannot_write(tmp_path):
    orphan = store(tmp_path, attempt=1)
    store(tmp_path, attempt=2)
    assert not orphan.owned()
    with pytest.raises(Superseded):
        orphan.save(0, 1, STATE, committed=0)
    with pytest.raises(Superseded):
        orphan.claim()
    assert not list(tmp_path.glob("client_*/round_*"))


def test_claiming_twice_is_harmless(tmp_path):
    store(tmp_path, attempt=2)
    store(tmp_path, attempt=2)
    assert owner(tmp_path) == ("run", 2)


def test_a_lost_record_does_not_set_the_count_back(tmp_path):
    """Nodes keep the highest attempt that they were told, and answer to no lower one."""
    server, node = store(tmp_path / "server", attempt=7), tmp_path / "node"
    server.give_configuration("{}")
    store(node, attempt=7)
    (tmp_path / "server" / "attempt.json").unlink()
    run, attempt = owner(tmp_path / "server")
    assert run is None and attempt > 7
    store(tmp_path / "server", attempt + 1)
    store(node, attempt + 1)
    assert owner(node) == owner(tmp_path / "server") == ("run", attempt + 1)


def test_a_lost_record_ends_no_work_under_way(tmp_path):
    private = store(tmp_path)
    private.give_configuration("{}")
    (tmp_path / "attempt.json").unlink()
    assert private.owned()
    private.claim()
    assert owner(tmp_path) == ("run", 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": "a"}', '{"run": "a", "attempt": "two"}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "attempt.json").write_text(text)
    with pytest.raises(
        FedPGPError, match="attempt.json is damaged .*; remove it and resume with resume="
    ):
        owner(tmp_path)


def test_a_folder_belongs_to_one_run(tmp_path):
    store(tmp_path, run="a")
    with pytest.raises(FedPGPError, match="another run"):
        store(tmp_path, run="b")


def _hold_and_write(folder: str, ready, go):
    orphan = PrivateStore(folder, "run", 1)
    orphan.claim()
    ready.set()
    go.wait(20)
    try:
        orphan.save(0, 1, STATE, committed=0)
    except Superseded:
        os._exit(7)


def test_fencing_holds_between_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    worker = context.Process(target=_hold_and_write, args=(str(tmp_path), ready, go))
    worker.start()
    assert ready.wait(60)
    store(tmp_path, attempt=2)
    go.set()
    worker.join(60)
    assert worker.exitcode == 7


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FedPGPError, match=f"no space left on the disk while writing {path}"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_finite():
    assert finite(STATE)
    assert not finite({"U": torch.tensor([1.0, float("nan")])})


def test_a_configuration_is_kept_by_its_checksum(tmp_path):
    store = PrivateStore(tmp_path, "run", 1)
    digest = store.give_configuration('{"lr": 0.1}')
    assert store.configuration(digest) == '{"lr": 0.1}'
    (path,) = tmp_path.glob("config_*.json")
    path.write_text('{"lr": 0.2}')
    with pytest.raises(FedPGPError, match="configuration is damaged"):
        store.configuration(digest)
    path.unlink()
    with pytest.raises(FedPGPError, match="configuration cannot be read"):
        store.configuration(digest)
