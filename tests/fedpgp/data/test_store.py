import os
import signal
import uuid

import pytest

from fedpgp.atomic_files import remove_leftovers
from fedpgp.data.store import cache_folder, locked, write_cache
from fedpgp.errors import FedPGPError


def test_cache_folder(tmp_path, monkeypatch):
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("FEDPGP_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FEDPGP_CACHE")
    assert cache_folder().parts[-3:] == (".cache", "fedpgp", "features")


def test_no_space_left_says_where_and_how_to_move(tmp_path, monkeypatch):
    path = tmp_path / "features.bin"
    # /dev/full is a disk without space: what is written through this name meets the real error.
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(int=0))
    (tmp_path / ".features.bin.00000000.tmp").symlink_to("/dev/full")
    with pytest.raises(
        FedPGPError,
        match=rf"no space left for the cache in {tmp_path}.*runtime.cache_dir=.*FEDPGP_CACHE",
    ):
        write_cache(path, bytes(1 << 16))
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FedPGPError, match="cannot be written"):
        write_cache(tmp_path / "file" / "x", b"1")
    with pytest.raises(FedPGPError, match="cannot be written"), locked(tmp_path / "file" / "x"):
        pass


def test_a_killed_owner_frees_the_lock_and_leaves_nothing(tmp_path):
    path = tmp_path / "features.bin"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(path):
            (tmp_path / ".features.bin.01234567.tmp").write_bytes(b"half")
            os.write(writer, b"!")
            signal.pause()
        os._exit(0)
    assert os.read(reader, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(path):
        remove_leftovers(path.parent, f".{path.name}.*.tmp")
        write_cache(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert not list(tmp_path.glob(".*.tmp"))
