"""A client's own images while its folder grows: which of them are there in which round.

The list stands in a file of the run. An image that is on it stays what it was, by name and size, in
the part (train or test) that it came to; only new ones are added. A round that is repeated has the
images that it had.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedpgp.atomic_files import write_atomically
from fedpgp.data.base import Dataset, FileSplit, Split
from fedpgp.data.images import Reading
from fedpgp.data.joint import Concat
from fedpgp.data.layouts import NoImages
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.plain_text import written_out

SETTLED = 2.0
"""Seconds for which a new file has to be left alone: one that is being copied is not."""

PARTS = ("train", "test")
SHOWN = 5
"""Images that a message names."""

Listed = list[tuple[str, int, str]]
"""Images: path below the folder, bytes, class."""


@dataclass
class Arrival:
    """The images that were found at one look.

    Attributes:
        since: the first round that has them.
        train, test: the images.
    """

    since: int
    train: Listed = field(default_factory=list)
    test: Listed = field(default_factory=list)


@dataclass
class ImageList:
    """All looks at a client's folder.

    Attributes:
        looked: the last round for which the folder was looked at; -1 before the first look.
        arrivals: in the order of their rounds.
        notes: what was said of the folder at the last look.
    """

    looked: int = -1
    arrivals: list[Arrival] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "ImageList":
        """Return the list in a file; an empty one where there is no file yet.

        Raises:
            FedPGPError: it cannot be read.
        """
        try:
            record = json.loads(path.read_bytes())
            arrivals = [
                Arrival(one["since"], *([tuple(image) for image in one[part]] for part in PARTS))
                for one in record["arrivals"]
            ]
            return cls(record["looked"], arrivals, list(record["notes"]))
        except FileNotFoundError:
            return cls()
        except (OSError, *MALFORMED) as error:
            raise FedPGPError(
                f"{path}, the list of this run's images, cannot be read ({error}); restore it"
            ) from error

    def write(self, path: Path) -> None:
        """Write the list, for its owner alone."""
        record = {**vars(self), "arrivals": [vars(arrival) for arrival in self.arrivals]}
        write_atomically(path, json.dumps(record).encode(), private=True)

    def sizes(self) -> dict[str, int]:
        """Return path -> bytes of all images."""
        every = (image for one in self.arrivals for part in PARTS for image in getattr(one, part))
        return {path: size for path, size, _ in every}


def look(path: Path, list_images: Callable[[], Dataset], server_round: int | None) -> list[str]:
    """Look at a client's folder, and add to its list what is new.

    Args:
        path: of the list.
        list_images: the folder's images as they are.
        server_round: the round that will train on them. A round that has been looked for has its
            images, and nothing is done. None: no round yet, and what is new counts from the next
            one on.

    Returns:
        What there is to say of the folder, where it is something else than the last time.

    Raises:
        FedPGPError: an image of the list was changed or removed, or the folder cannot be read.
    """
    known = ImageList.read(path)
    if server_round is not None and server_round <= known.looked:
        return []
    arrival = Arrival(known.looked + 1 if server_round is None else server_round)
    found, notes = _listed(list_images)
    sizes = known.sizes()
    _refuse_changes(sizes, found)
    if known.looked < 0 and any(_is_young(image) for image in found.values()):
        time.sleep(SETTLED)  # the first look decides whether there is anything to begin with
        found, notes = _listed(list_images)
    unfinished = []
    for name, image in found.items():
        if name in sizes:
            continue
        if _is_young(image) or not _is_readable(image):
            unfinished.append(name)
        else:
            size = os.stat(image.split.root / name).st_size
            getattr(arrival, image.part).append((name, size, image.label))
    if unfinished:
        notes.append(f"not taken yet: unreadable, or just written: {_few(unfinished)}")
    if arrival.train or arrival.test:
        known.arrivals.append(arrival)
    said = notes if notes != known.notes else []
    known.notes = notes
    known.looked = max(known.looked, 0 if server_round is None else server_round)
    known.write(path)
    return said


def arrived(
    path: Path,
    root: Path,
    class_names: Sequence[str],
    template: str,
    reading: Reading,
    server_round: int | None,
) -> Dataset:
    """Return the images that a client has in a round, in the order in which they came.

    What came at one look is a part of its own, whose features are encoded and cached by themselves.

    Args:
        path: of the list.
        root: the client's folder.
        class_names: in label order.
        template: of a class's sentence.
        reading: how images are read.
        server_round: the round; None takes all images.

    Raises:
        FedPGPError: the list cannot be read.
    """
    label = {name: i for i, name in enumerate(class_names)}
    there = [
        one
        for one in ImageList.read(path).arrivals
        if server_round is None or one.since <= server_round
    ]

    def files(images: Listed) -> FileSplit:
        paths, labels = [path for path, _, _ in images], [label[name] for _, _, name in images]
        return FileSplit(root, paths, labels, None, reading)

    def split(part: str) -> Split:
        found = [files(images) for one in there if (images := getattr(one, part))]
        if len(found) > 1:
            return Concat(found, [0] * len(found))
        return found[0] if found else files([])

    return Dataset("folder", list(class_names), template, split("train"), None, split("test"))


@dataclass(frozen=True)
class _Found:
    """An image in the folder: row ``row`` of a split."""

    split: FileSplit
    row: int
    part: str
    label: str


def _listed(list_images: Callable[[], Dataset]) -> tuple[dict[str, _Found], list[str]]:
    """Return path -> image of those in the folder, and what is to be said of it."""
    try:
        dataset = list_images()
    except NoImages as error:
        return {}, [str(error)]
    found = {}
    for part in PARTS:
        split = getattr(dataset, part)
        for row, (name, label) in enumerate(zip(split.paths, split.labels, strict=True)):
            found[name] = _Found(split, row, part, dataset.class_names[label])
    return found, list(dataset.notes)


def _refuse_changes(sizes: dict[str, int], found: dict[str, _Found]) -> None:
    """Refuse a folder in which an image of the list is not what it was.

    Raises:
        FedPGPError: naming some.
    """
    removed, changed = [], []
    for name, size in sizes.items():
        try:
            now = os.stat(found[name].split.root / name).st_size if name in found else None
        except OSError:
            now = None
        if now is None:
            removed.append(name)
        elif now != size:
            changed.append(name)
    if removed or changed:
        said = [
            f"{what}: {_few(names)}"
            for what, names in (("removed", removed), ("changed", changed))
            if names
        ]
        raise FedPGPError(
            f"images that this run has trained on were {'; '.join(said)}. Restore them: while a "
            "run is on, a folder may only grow"
        )


def _is_young(image: _Found) -> bool:
    """Whether a file may still be written; a date in the future says nothing."""
    try:
        status = os.stat(image.split.root / image.split.paths[image.row])
    except OSError:
        return True
    now = time.time()
    return any(0 <= now - at < SETTLED for at in (status.st_mtime, status.st_ctime))


def _is_readable(image: _Found) -> bool:
    try:
        image.split.image(image.row)
    except FedPGPError:
        return False
    return True


def _few(names: Sequence[str]) -> str:
    more = f" … ({len(names)})" if len(names) > SHOWN else ""
    return written_out(", ".join(sorted(names)[:SHOWN]) + more)
