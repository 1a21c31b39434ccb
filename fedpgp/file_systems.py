"""On which kind of file system a folder is."""

import re
from pathlib import Path

LOCAL = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "tmpfs", "overlay")
)
"""File systems of one machine's own disks and memory."""

_MOUNTS = Path("/proc/self/mountinfo")


def file_system(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """Return the type of a folder's file system in the kernel's words (``ext4``, ``nfs4``, …);
    None where the system does not say.

    Args:
        folder: need not exist.
        mounts: the kernel's list, as ``proc_pid_mountinfo(5)`` describes it.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    place, found = folder.resolve(), (-1, None)
    for line in lines:
        before, _, after = line.partition(" - ")
        mounted = Path(_unescaped(before.split(" ")[4]))
        if place.is_relative_to(mounted) and len(mounted.parts) >= found[0]:  # the last one hides
            found = len(mounted.parts), after.split(" ")[0]
    return found[1]


def _unescaped(text: str) -> str:
    """A name whose spaces and the like the kernel writes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
