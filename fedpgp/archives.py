"""Zip archives that somebody else made: weights files are some, and the embedded images."""

import zipfile
from pathlib import Path

from fedpgp.errors import FedPGPError

MOST = 10
"""Times a file's own size that its members may take: images and weights hardly shrink."""


def check_members(file: Path) -> None:
    """Refuse a zip archive whose members would take far more room than the file.

    Args:
        file: of any kind; one that is no zip archive passes.

    Raises:
        FedPGPError: they would; a few kilobytes can unpack to more than the memory.
        zipfile.BadZipFile, OSError: it cannot be read.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > MOST * file.stat().st_size:
        raise FedPGPError(
            f"{file} is not unpacked: its {file.stat().st_size:,} bytes would become {size:,}; "
            "restore it, or fetch it again from where it is published"
        )
