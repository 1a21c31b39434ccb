"""From lists of files to a data set; and CoOp's fixed splits (``split_zhou_*.json``), used
wherever they are there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpgp.data.base import Dataset, FileSplit
from fedpgp.data.files import image_files, read_json, shuffled
from fedpgp.errors import FedPGPError

Rows = list[tuple[str, int]]
"""Images: path and label."""


@dataclass(frozen=True)
class Zhou:
    """A split that CoOp publishes: its file, and the id Google Drive keeps it under."""

    file: str
    drive: str

    def read(self, folder: Path, images: str) -> "Listing | None":
        """The split, or None when its file is not in ``folder``. Its paths start at
        ``folder/images``.

        Raises:
            FedPGPError: the file is damaged.
        """
        path = folder / self.file
        if not path.exists():
            return None
        content, names = read_json(path), {}
        try:
            parts = {
                part: [
                    (f"{images}/{file}" if images else file, int(label))
                    for file, label, _ in content[part]
                ]
                for part in ("train", "val", "test")
            }
            for part in parts:
                collect(names, ((int(label), name) for _, label, name in content[part]), path)
        except (KeyError, TypeError, ValueError) as error:
            raise FedPGPError(f"{path} is no split of CoOp ({error!r}); fetch it again") from error
        return Listing(dense(names, path), **parts, note=f"split: {self.file} (CoOp)")

    def absent(self, instead: str) -> str:
        """The note of a data set that has another split because this file is not there."""
        return (
            f"split: {instead}; CoOp's is not there ({self.file}, "
            f"drive.google.com/file/d/{self.drive})"
        )


@dataclass(frozen=True)
class Listing:
    """Class names in label order, the rows of each split (None: there is no such split),
    and what to say of them."""

    class_names: list[str]
    train: Rows | None
    val: Rows | None
    test: Rows
    note: str | None = None

    def dataset(self, name: str, template: str, root: Path) -> Dataset:
        """The data set of these rows, whose paths start at ``root``.

        Raises:
            FedPGPError: no images to train on or to test.
        """
        for part in ("train", "test"):
            if getattr(self, part) == []:
                raise FedPGPError(
                    f"data set {name}: its {part} split in {root} has no images; fetch it again"
                )

        def split(rows: Rows | None) -> FileSplit | None:
            return (
                FileSplit(root, [path for path, _ in rows], [label for _, label in rows])
                if rows
                else None
            )

        notes = () if self.note is None else (self.note,)
        return Dataset(
            name,
            self.class_names,
            template,
            split(self.train),
            split(self.val),
            split(self.test),
            notes=notes,
        )


def collect(names: dict[int, str], found: Iterable[tuple[int, str]], path: Path) -> None:
    """Adds (label, name) pairs to ``names``.

    Raises:
        FedPGPError: a label has two names.
    """
    for label, name in found:
        if names.setdefault(label, name) != name:
            raise FedPGPError(
                f"{path}: label {label} is both {names[label]} and {name}; fetch the data set again"
            )


def dense(names: Mapping[int, str], path: Path) -> list[str]:
    """Class names in label order.

    Raises:
        FedPGPError: the labels are not 0, 1, 2, …
    """
    missing = sorted(set(range(max(names, default=0) + 1)) - set(names))
    if missing or min(names) < 0:
        raise FedPGPError(
            f"{path}: no image has label {missing[0] if missing else 0}; fetch the data set again"
        )
    return [names[label] for label in range(len(names))]


def listed(folder: Path, below: Sequence[str], prefix: str = "") -> Rows:
    """All images of class folders; the label is the class folder's place in ``below``."""
    return [
        (f"{prefix}{name}/{file}", label)
        for label, name in enumerate(below)
        for file in image_files(folder / name)
    ]


def in_three(rows: Rows, seed: int = 0) -> tuple[Rows, Rows, Rows]:
    """Half of each class for training, a fifth for validation, the rest for testing: CoOp's rule
    where there is no official split. Which files, hangs on their names only."""
    parts: tuple[Rows, Rows, Rows] = ([], [], [])
    for label in sorted({label for _, label in rows}):
        files = shuffled([path for path, mine in rows if mine == label], seed)
        train, val = round(0.5 * len(files)), round(0.2 * len(files))
        for part, chosen in zip(
            parts, (files[:train], files[train : train + val], files[train + val :]), strict=True
        ):
            part += [(path, label) for path in sorted(chosen)]
    return parts
