"""``emoji``: the embedded federation. Six vendors' emoji; the vendor is the domain, the Unicode subgroup the class.

Shipped with the package (``fedpgp/assets/emoji``, built by ``experiments/embedded``). An emoji is train or test in
every domain alike, so that none is seen in training in another style.
"""

import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fedpgp.assets_path import asset
from fedpgp.data.base import Dataset, Split, register
from fedpgp.errors import FedPGPError, unknown

DOMAINS = ("noto", "twemoji", "fluent", "fluent_flat", "high_contrast", "openmoji")


class ZipSplit(Split):
    """Pictures in zip archives; each process opens the archives for itself.

    Args:
        members: N pairs (archive, name inside it).
        checksums: N CRC-32 of the archives' tables of contents.
    """

    def __init__(
        self,
        members: Sequence[tuple[Path, str]],
        checksums: Sequence[int],
        labels: Sequence[int],
        domains: Sequence[str],
    ):
        super().__init__(labels, domains)
        self.members, self.checksums = list(members), list(checksums)
        self._archives: dict[tuple[int, Path], zipfile.ZipFile] = {}

    def describe(self, i: int) -> str:
        archive, name = self.members[i]
        return f"{name} of {archive}"

    @cached_property
    def fingerprint(self) -> str:
        lines = [f"{path.name}/{name} {crc}" for (path, name), crc in zip(self.members, self.checksums, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _open(self, i: int) -> Image.Image:
        path, name = self.members[i]
        key = (os.getpid(), path)  # a forked child must not share its parent's file position
        if key not in self._archives:
            self._archives[key] = zipfile.ZipFile(path)
        image = Image.open(io.BytesIO(self._archives[key].read(name)))
        image.load()
        return image

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_archives": {}}


@register("emoji")
def load(root: Path, *, download: bool = False, domains: str | Sequence[str] | None = None) -> Dataset:
    """The embedded federation.

    Args:
        root, download: not used, the pictures are shipped.
        domains: some of :data:`DOMAINS`; None is all.

    Raises:
        FedPGPError: unknown domain; a shipped file that is missing or truncated.
    """
    chosen = DOMAINS if domains is None else [domains] if isinstance(domains, str) else list(domains)
    for domain in chosen:
        if domain not in DOMAINS:
            raise FedPGPError(unknown("domain of emoji", domain, DOMAINS))
    classes = sorted(_table("classes.csv", "label", "class", "subgroups"), key=lambda row: int(row["label"]))
    class_names = [row["class"] for row in classes]
    label_of = {name: label for label, name in enumerate(class_names)}
    emoji = _table("emoji.csv", "codepoints", "class", "split")
    if not {row["class"] for row in emoji} <= set(class_names):
        raise FedPGPError(f"{asset('emoji', 'classes.csv')} lacks classes that emoji.csv names; restore both")
    archives = {domain: _contents(domain) for domain in DOMAINS if domain in chosen}
    splits = {}
    for split in ("train", "test"):
        rows = [
            ((path, names[row["codepoints"]].filename), names[row["codepoints"]].CRC, label_of[row["class"]], domain)
            for domain, (path, names) in archives.items()
            for row in emoji
            if row["split"] == split and row["codepoints"] in names
        ]
        splits[split] = ZipSplit(*([row[k] for row in rows] for k in range(4)))
    # Unicode names a subgroup after its group: animal-mammal, food-fruit, face-smiling.
    groups = [row["subgroups"].split("-")[0] for row in classes]
    superclasses = np.array([sorted(set(groups)).index(group) for group in groups], dtype=np.int64)
    return Dataset("emoji", class_names, "a photo of a {}.", splits["train"], None, splits["test"], superclasses)


def _table(name: str, *columns: str) -> list[dict[str, str]]:
    path = asset("emoji", name)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(not row.get(column) for row in rows for column in columns):
        raise FedPGPError(
            f"{path} is empty or truncated: it needs the columns {', '.join(columns)} in every row; restore it"
        )
    return rows


def _contents(domain: str) -> tuple[Path, dict[str, zipfile.ZipInfo]]:
    """The archive of a domain and its members by code points."""
    path = asset("emoji", f"{domain}.zip")
    try:
        with zipfile.ZipFile(path) as archive:
            return path, {Path(info.filename).stem: info for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise FedPGPError(f"{path} cannot be read ({error}); it is truncated or no zip archive: restore it") from error
