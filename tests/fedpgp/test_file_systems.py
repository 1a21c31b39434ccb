"""On which kind of file system a folder is."""

from pathlib import Path

from fedpgp.file_systems import file_system

MOUNTS = r"""21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 21 0:40 / /home rw - autofs systemd-1 rw
31 30 0:41 / /home rw,relatime shared:9 master:2 - nfs4 server:/export rw
32 21 0:42 / /mnt/two\040words rw - xfs /dev/sdb1 rw
33 21 0:43 / /scratch rw - tmpfs tmpfs rw
"""


def test_the_deepest_and_last_mount_counts(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    found = {
        folder: file_system(Path(folder), mounts)
        for folder in ("/homes/a", "/home/a/runs", "/mnt/two words/x", "/mnt/two", "/scratch", "/")
    }
    assert found == {
        "/homes/a": "ext4",
        "/home/a/runs": "nfs4",
        "/mnt/two words/x": "xfs",
        "/mnt/two": "ext4",
        "/scratch": "tmpfs",
        "/": "ext4",
    }


def test_a_system_that_does_not_say(tmp_path):
    assert file_system(tmp_path, tmp_path / "missing") is None
