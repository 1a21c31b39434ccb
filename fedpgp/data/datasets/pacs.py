"""``pacs``: 7 classes in four domains (Li et al. 2017), 9,991 images of 227x227."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.datasets.domains import Row, build, choose, from_folders
from fedpgp.data.files import Source, locate, read_columns
from fedpgp.errors import FedPGPError

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
FOLDERS = ("pacs/images", "PACS/images", "pacs/kfold", "PACS/kfold", "pacs", "PACS")
LEFT_OUT = "sketch/dog/n02103406_4068-1.png"  # a broken image that the lists name
SOURCE = Source(
    "Dassl's copy with its lists (drive.google.com/file/d/1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE)",
    "about 0.2 GB",
)


@register("pacs")
def load(
    root: Path, *, download: bool = False, domains: str | Sequence[str] | None = None
) -> Dataset:
    """PACS. The published test lists hold the training images too: what remains
    without them is the test split.

    Args:
        domains: some of :data:`DOMAINS`; None is all.

    Raises:
        FedPGPError: unknown domain; not there, or damaged.
    """
    chosen = choose("pacs", domains, DOMAINS)
    folder = locate("pacs", root, FOLDERS, chosen, SOURCE, download)
    splits = next((p for p in (folder / "splits", folder.parent / "splits") if p.is_dir()), None)
    if splits is None:
        return from_folders("pacs", folder, {domain: domain for domain in chosen}, CLASSES)

    def rows(part: str) -> list[Row]:
        rows = []
        for domain in chosen:
            path = splits / f"{domain}_{part}_kfold.txt"
            for file, number in read_columns(path, 2):
                name = file.split("/")[1] if file.count("/") == 2 else ""
                if number not in map(str, range(1, 8)) or CLASSES[int(number) - 1] != name:
                    raise FedPGPError(
                        f"{path}: {file} {number} is no image of class {number}; fetch it again"
                    )
                if file != LEFT_OUT:
                    rows.append((file, int(number) - 1, domain))
        return rows

    train = rows("train")
    seen = {file for file, _, _ in train}
    test = [row for row in rows("test") if row[0] not in seen]
    seen.update(file for file, _, _ in test)
    val = [row for row in rows("crossval") if row[0] not in seen]
    return build(
        "pacs",
        CLASSES,
        folder,
        train,
        val,
        test,
        "split: official lists, test without training images",
    )
