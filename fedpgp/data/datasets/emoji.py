"""``emoji``: the embedded federation. Six vendors' emoji; the vendor is the domain, the
Unicode subgroup the class.

Shipped with the package (``fedpgp/assets/emoji``, built by ``tools/embedded``). An emoji is train
or test in every domain alike, so that none is seen in training in another style; so it is with
those that validation takes.
"""

import csv
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fedpgp.archives import check_members
from fedpgp.assets_path import asset
from fedpgp.data.base import VALIDATION_FRACTION, Dataset, Split, register
from fedpgp.data.images import read_image
from fedpgp.digests import digest
from fedpgp.errors import FedPGPError, unknown

DOMAINS = ("noto", "twemoji", "fluent", "fluent_flat", "high_contrast", "openmoji")

GROUPS = {
    "animals": ("mammal", "insect", "plant", "bird", "sea animal", "flower"),
    "food": ("fruit", "meal", "drink", "vegetable", "Asian food", "dessert"),
    "faces": ("smiling face", "worried face", "neutral face", "sick face", "heart"),
    "people": ("worker", "hand gesture", "athlete", "person", "body part"),
    "travel": ("land vehicle", "building", "clock", "aircraft", "weather"),
    "activities": ("celebration", "music", "sports equipment"),
    "objects": (
        "clothing",
        "tool",
        "office supply",
        "computer",
        "mail",
        "book",
        "camera or lamp",
        "science",
    ),
    "symbols": (
        "letter sign",
        "geometric shape",
        "media button",
        "prohibition sign",
        "zodiac sign",
        "keycap",
        "arrow",
    )
    + ("public sign",),
}
"""Classes by what they are of: each group can stand for a data set of its own."""


class ZipSplit(Split):
    """Images in zip archives; each process opens the archives for itself.

    Args:
        members: N pairs (archive, name inside it).
        checksums: N CRC-32 of the archives' tables of contents.
        reserved: N, whether validation takes an image.
    """

    def __init__(
        self,
        members: Sequence[tuple[Path, str]],
        checksums: Sequence[int],
        labels: Sequence[int],
        domains: Sequence[str],
        reserved: Sequence[bool],
    ):
        super().__init__(labels, domains)
        self.reserved = np.asarray(reserved, dtype=bool)
        self.members, self.checksums = list(members), list(checksums)
        self._archives: dict[tuple[int, Path], zipfile.ZipFile] = {}

    def describe(self, i: int) -> str:
        archive, name = self.members[i]
        return f"{name} of {archive}"

    @cached_property
    def fingerprint(self) -> str:
        lines = [
            f"{path.name}/{name} {crc}"
            for (path, name), crc in zip(self.members, self.checksums, strict=True)
        ]
        return digest("\n".join(lines))

    def _open(self, i: int) -> Image.Image:
        path, name = self.members[i]
        key = (os.getpid(), path)  # a forked child must not share its parent's file position
        if key not in self._archives:
            self._archives[key] = zipfile.ZipFile(path)
        return read_image(self._archives[key].read(name))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_archives": {}}


@register("emoji")
def load(
    root: Path,
    *,
    download: bool = False,
    domains: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
) -> Dataset:
    """The embedded federation.

    Args:
        root, download: not used, the images are shipped.
        domains: some of :data:`DOMAINS`; None is all.
        groups: of classes, some of :data:`GROUPS`; None is all classes.

    Raises:
        FedPGPError: unknown domain or group; a shipped file that is missing or truncated.
    """
    chosen, wanted = _chosen("domain", domains, DOMAINS), _chosen("group", groups, GROUPS)
    classes = sorted(
        _table("classes.csv", "label", "class", "subgroups"), key=lambda row: int(row["label"])
    )
    emoji = _table("emoji.csv", "codepoints", "class", "split")
    if not {row["class"] for row in emoji} <= {row["class"] for row in classes}:
        raise FedPGPError(
            f"{asset('emoji', 'classes.csv')} lacks classes that emoji.csv names; restore both"
        )
    if groups is not None:
        kept = {name for group in wanted for name in GROUPS[group]}
        classes = [row for row in classes if row["class"] in kept]
        emoji = [row for row in emoji if row["class"] in kept]
    class_names = [row["class"] for row in classes]
    label_of = {name: label for label, name in enumerate(class_names)}
    archives = {domain: _contents(domain) for domain in DOMAINS if domain in chosen}
    splits, reserved = {}, _reserved(emoji)
    for split in ("train", "test"):
        rows = [
            (
                (path, names[code].filename),
                names[code].CRC,
                label_of[row["class"]],
                domain,
                code in reserved,
            )
            for domain, (path, names) in archives.items()
            for row in emoji
            if row["split"] == split and (code := row["codepoints"]) in names
        ]
        splits[split] = ZipSplit(*([row[k] for row in rows] for k in range(5)))
    # Unicode names a subgroup after its group: animal-mammal, food-fruit, face-smiling.
    prefixes = [row["subgroups"].split("-")[0] for row in classes]
    superclasses = np.array(
        [sorted(set(prefixes)).index(prefix) for prefix in prefixes], dtype=np.int64
    )
    return Dataset(
        "emoji",
        class_names,
        "a photo of a {}.",
        splits["train"],
        None,
        splits["test"],
        superclasses,
    )


def _reserved(emoji: Sequence[Mapping[str, str]]) -> set[str]:
    """Code points of the training emoji that validation takes: a fraction of each class,
    by a hash, as for test."""
    taken: set[str] = set()
    for name in {row["class"] for row in emoji}:
        codes = [
            row["codepoints"] for row in emoji if row["class"] == name and row["split"] == "train"
        ]
        codes.sort(key=lambda code: digest(f"validation:{code}"))
        taken.update(codes[: max(1, round(VALIDATION_FRACTION * len(codes)))])
    return taken


def _chosen(what: str, asked: str | Sequence[str] | None, valid: Collection[str]) -> list[str]:
    chosen = list(valid) if asked is None else [asked] if isinstance(asked, str) else list(asked)
    for name in chosen:
        if name not in valid:
            raise FedPGPError(unknown(f"{what} of emoji", name, valid))
    if not chosen:
        raise FedPGPError(f"dataset.{what}s of emoji is empty; choose some of {', '.join(valid)}")
    return chosen


def _table(name: str, *columns: str) -> list[dict[str, str]]:
    path = asset("emoji", name)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(not row.get(column) for row in rows for column in columns):
        raise FedPGPError(
            f"{path} is empty or truncated: it needs the columns {', '.join(columns)} in every "
            "row; restore it"
        )
    return rows


def _contents(domain: str) -> tuple[Path, dict[str, zipfile.ZipInfo]]:
    """The archive of a domain and its members by code points."""
    path = asset("emoji", f"{domain}.zip")
    try:
        check_members(path)
        with zipfile.ZipFile(path) as archive:
            return path, {Path(info.filename).stem: info for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise FedPGPError(
            f"{path} cannot be read ({error}); it is truncated or no zip archive: restore it"
        ) from error
