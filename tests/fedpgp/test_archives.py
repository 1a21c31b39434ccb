"""Zip archives that unpack to more than the memory."""

import re
import shutil
import zipfile

import pytest

from fedpgp.archives import check_members
from fedpgp.clip.loading import load_clip
from fedpgp.data import load_dataset
from fedpgp.errors import FedPGPError

ZEROS = 20_000_000


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(ZEROS))
        archive.writestr("archive/constants.pkl", b"")
    assert path.stat().st_size < ZEROS / 100
    return path


def test_what_is_stored_passes(tmp_path):
    with zipfile.ZipFile(tmp_path / "stored.zip", "w") as archive:
        archive.writestr("a", bytes(ZEROS))
    check_members(tmp_path / "stored.zip")
    (tmp_path / "no.zip").write_bytes(b"no archive")
    check_members(tmp_path / "no.zip")


def test_members_that_share_their_bytes_count_each(tmp_path):
    """A central directory that names one stored member a hundred times."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", bytes(100_000))
        archive.filelist *= 100
    with pytest.raises(FedPGPError, match="would become 10,000,000"):
        check_members(tmp_path / "a.zip")


@pytest.mark.parametrize("where", ["file", "folder"])
def test_weights_are_refused(tmp_path, where):
    name, tag = "ViT-B-32-quickgelu", str(bomb(tmp_path / "open_clip_pytorch_model.bin"))
    if where == "folder":
        (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}, "preprocess_cfg": {}}')
        name, tag = f"local-dir:{tmp_path}", None
    with pytest.raises(FedPGPError, match=rf"{re.escape(str(tmp_path))}.* is not unpacked: its"):
        load_clip(name, tag)


def test_embedded_images_are_refused(tmp_path, monkeypatch):
    from fedpgp.assets_path import asset

    shutil.copytree(asset("emoji", "noto.zip").parent, tmp_path / "emoji")
    bomb(tmp_path / "emoji" / "noto.zip")
    monkeypatch.setenv("FEDPGP_ASSETS", str(tmp_path))
    with pytest.raises(FedPGPError, match="noto.zip is not unpacked"):
        load_dataset("emoji", domains="noto")
