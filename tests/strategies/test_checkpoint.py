import errno
import os

import numpy as np
import pytest

from fedpgp.errors import FedPGPError
from strategies import checkpoint as module
from strategies.checkpoint import (
    Corrupted,
    check_complete,
    checkpoints,
    latest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)

TENSORS = {
    "shared/p_G": np.arange(12.0).reshape(3, 4),
    "committed": np.array([0, 2, 1]),
    "shared/q": np.ones(3, np.float32),
}
INFO = {"run": "abc", "seconds": {"total": 1.5}}


def test_it_comes_back_exactly(tmp_path):
    path = save_checkpoint(tmp_path, 5, TENSORS, INFO)
    assert path.name == "round_00005.safetensors"
    tensors, info = read_checkpoint(path)
    assert info == {"format": module.FORMAT, "round": 5, **INFO}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_the_last_two_are_kept(tmp_path):
    for server_round in range(5):
        save_checkpoint(tmp_path, server_round, TENSORS, INFO)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "round_00003.safetensors",
        "round_00004.safetensors",
    ]


def test_a_flipped_byte_anywhere_is_found(tmp_path):
    """Every region of the file: length, header, metadata, tensors."""
    path = save_checkpoint(tmp_path, 1, TENSORS, INFO)
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 0x41
        path.write_bytes(bytes(data))
        with pytest.raises(Corrupted, match="round_00001"):
            read_checkpoint(path)
    for length in (0, 5, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(Corrupted):
            read_checkpoint(path)


def test_a_damaged_one_falls_back_to_the_one_before(tmp_path):
    save_checkpoint(tmp_path, 1, TENSORS, INFO)
    path = save_checkpoint(tmp_path, 2, TENSORS, INFO)
    path.write_bytes(path.read_bytes()[:-4])
    warnings = []
    _, info = latest_checkpoint(tmp_path, warnings.append)
    assert info["round"] == 1 and len(warnings) == 1 and str(path) in warnings[0]


def test_none_intact_is_an_error_and_none_at_all_is_not(tmp_path):
    assert latest_checkpoint(tmp_path, print) is None
    save_checkpoint(tmp_path, 1, TENSORS, INFO).write_bytes(b"junk")
    with pytest.raises(FedPGPError, match="no checkpoint in .* is intact"):
        latest_checkpoint(tmp_path, lambda text: None)


def test_another_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 7)
    save_checkpoint(tmp_path, 1, TENSORS, INFO)
    monkeypatch.undo()
    with pytest.raises(
        FedPGPError,
        match="round_00001.safetensors has format 7; this version of fedpgp reads the formats 2, 3",
    ):
        latest_checkpoint(tmp_path, print)


def test_an_older_format_is_read_and_one_that_lacks_more_is_named(tmp_path):
    save_checkpoint(tmp_path, 1, TENSORS, {"format": 2, **INFO})
    _, info = latest_checkpoint(tmp_path, print)
    assert info == {"format": 2, "round": 1, "placed": {}, **INFO}
    with pytest.raises(
        FedPGPError,
        match=r"another version of fedpgp \(they lack config, rule, observer, table.*anew",
    ):
        check_complete(tmp_path, info)
    check_complete(tmp_path, dict.fromkeys(module.RESUMED))


def test_a_full_disk_leaves_the_previous_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, TENSORS, INFO)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FedPGPError, match="no space left on the disk while writing .*round_00002"):
        save_checkpoint(tmp_path, 2, TENSORS, INFO)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path, print)[1]["round"] == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("broken", ["folder", "link"])
def test_what_is_no_file_is_passed_over(tmp_path, broken):
    save_checkpoint(tmp_path, 1, TENSORS, INFO)
    path, said = tmp_path / "round_00002.safetensors", []
    path.mkdir() if broken == "folder" else path.symlink_to(tmp_path / "nowhere")
    assert latest_checkpoint(tmp_path, said.append)[1]["round"] == 1
    assert said == [f"the checkpoint {path} is no file; trying the one before"]
    for server_round in (3, 4, 5):
        save_checkpoint(tmp_path, server_round, TENSORS, INFO)
    assert checkpoints(tmp_path)[-1].name == "round_00005.safetensors"
