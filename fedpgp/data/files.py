"""What readers of public data sets share: finding and listing folders, fetching archives,
opening files safely."""

import csv
import hashlib
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedpgp.clip.torchvision_fix import fix_torchvision
from fedpgp.data.base import DATA_VARIABLE
from fedpgp.data.images import readable_formats
from fedpgp.data.store import locked
from fedpgp.errors import FedPGPError

IGNORED = {"__MACOSX"}
"""Folders that unpacking leaves behind; they do not count, as hidden ones do not."""


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        url: its address.
        md5: its MD5; None where nobody publishes it.
        into: the folder, below the data root, that it is put and unpacked into.
        inner: an archive that comes out of it, relative to ``into``, and is unpacked where it lies.
    """

    url: str
    md5: str | None
    into: str
    inner: str = ""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        page: what a person opens or fetches.
        size: of the download, with its unit.
        archives: what ``download=true`` fetches; empty where terms or hosts do not allow that.
    """

    page: str
    size: str
    archives: tuple[Archive, ...] = ()


class MissingData(FedPGPError):
    """A data set is not there.

    Attributes:
        source: where it comes from.
        folder: the one that it is looked for in first.
    """

    def __init__(self, text: str, source: Source, folder: Path):
        super().__init__(text)
        self.source, self.folder = source, folder

    def __reduce__(self):
        return type(self), (str(self), self.source, self.folder)


Marker = str | tuple[str, ...]
"""A file or folder that must be there, or several of which one must."""


def locate(
    name: str,
    root: Path,
    folders: Sequence[str],
    markers: Sequence[Marker],
    source: Source,
    download: bool,
) -> Path:
    """The data set's folder: the first of ``folders`` below ``root`` that holds all
    ``markers``; fetched first if asked.

    Raises:
        MissingData: there is none; says what to fetch, from where, how large, and where to put it.
        FedPGPError: it was not unpacked to the end, or cannot be fetched.
    """
    unfinished = root / f".{name}.unfinished"  # there while archives are unpacked
    found = _find(root, folders, markers)
    if download and source.archives and (found is None or unfinished.exists()):
        with locked(root / f"{name}.download"):
            # Unless another process has fetched it while this one waited.
            if _find(root, folders, markers) is None or unfinished.exists():
                _fetch(name, root, source, unfinished)
        found = _find(root, folders, markers)
    if unfinished.exists():
        raise FedPGPError(
            f"data set {name} was not unpacked to the end: set dataset.download=true once more, "
            f"or unpack it in {root / source.archives[0].into} by hand and remove {unfinished}"
        )
    if found is not None:
        return found
    places = ((marker,) if isinstance(marker, str) else marker for marker in markers)
    wanted = " and ".join(
        " or ".join(str(root / folders[0] / one) for one in alternatives) for alternatives in places
    )
    others = f" (or in {' or '.join(folders[1:])})" if len(folders) > 1 else ""
    by_itself = ", or set dataset.download=true," if source.archives else ""
    text = (
        f"data set {name} is not in {root}: fetch {source.page} ({source.size}){by_itself} so "
        f"that {wanted} exist{others}; another place is dataset.root=FOLDER or the environment "
        f"variable {DATA_VARIABLE}"
    )
    raise MissingData(text, source, root / folders[0])


def _find(root: Path, folders: Sequence[str], markers: Sequence[Marker]) -> Path | None:
    def there(folder: Path, marker: Marker) -> bool:
        return any(
            (folder / one).exists() for one in ((marker,) if isinstance(marker, str) else marker)
        )

    return next(
        (root / f for f in folders if all(there(root / f, marker) for marker in markers)), None
    )


def _fetch(name: str, root: Path, source: Source, unfinished: Path) -> None:
    fix_torchvision()
    from torchvision.datasets.utils import download_url, extract_archive

    for archive in source.archives:
        target = root / archive.into
        file = target / archive.url.rsplit("/", 1)[1]
        try:
            if (
                archive.md5 is None
            ):  # a file that a broken download left could not be told from a whole one
                file.unlink(missing_ok=True)
            download_url(archive.url, str(target), md5=archive.md5)
            if file.name.endswith((".tar.gz", ".tgz", ".zip", ".tar")):
                unfinished.touch()
                extract_archive(str(file), str(target))
                if archive.inner:
                    extract_archive(
                        str(target / archive.inner), str((target / archive.inner).parent)
                    )
                unfinished.unlink()
        except (OSError, RuntimeError, EOFError) as error:
            raise FedPGPError(
                f"data set {name}: {archive.url} cannot be fetched ({error}); fetch it by hand "
                f"({source.size}) and unpack it in {target}"
            ) from error


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted (upper case first); hidden ones left out."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in IGNORED
    )


def image_files(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; hidden ones left out."""
    return sorted(
        name for name in os.listdir(folder) if is_image(name) and not name.startswith(".")
    )


def is_image(name: str) -> bool:
    """Whether a file's name ends as one that Pillow can read."""
    return os.path.splitext(name)[1].lower() in _endings()


@cache
def _endings() -> frozenset[str]:
    """The endings of all formats that this machine's Pillow can read."""
    readable = readable_formats()
    return frozenset(
        ending for ending, kind in Image.registered_extensions().items() if kind in readable
    )


def shuffled(files: Sequence[Any], seed: int) -> list[Any]:
    """Files (paths, or tuples of a path's parts) in an order that hangs on their
    names and the seed only.

    So a split cut from it moves hardly any file when one is added.
    """

    def key(file: Any) -> bytes:
        text = file if isinstance(file, str) else "/".join(file)
        return hashlib.sha256(f"{seed}:{text}".encode(errors="surrogateescape")).digest()

    return sorted(files, key=key)


def hold_out(
    files: Sequence[tuple[str, str, str]], fraction: float, seed: int
) -> set[tuple[str, str, str]]:
    """Of files (domain, class, name): about ``fraction`` of each class and domain, at least
    one where there are two."""
    groups: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for file in files:
        groups.setdefault(file[:2], []).append(file)
    held = set()
    for members in groups.values():
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.update(shuffled(members, seed)[:count])
    return held


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        FedPGPError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FedPGPError(f"{path} cannot be read ({error}); fetch the data set again") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        FedPGPError: it cannot be read.
    """
    return [line for line in read_text(path).splitlines() if line.strip()]


def read_columns(path: Path, columns: int) -> list[list[str]]:
    """The lines of a text file cut at spaces into so many columns; the last one
    keeps the spaces it has.

    Raises:
        FedPGPError: it cannot be read, or a line has fewer columns.
    """
    rows = [line.split(maxsplit=columns - 1) for line in read_lines(path)]
    for number, row in enumerate(rows, 1):
        if len(row) < columns:
            raise FedPGPError(
                f"{path}, line {number}: {' '.join(row)!r} has {len(row)} columns, not {columns}"
            )
    return [[*row[:-1], row[-1].rstrip()] for row in rows]


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a head line.

    Args:
        path: of the file.
        columns: that it must have.

    Raises:
        FedPGPError: it cannot be read, lacks a column, or a row is too short.
    """
    reader = csv.DictReader(read_lines(path))
    lacks = [column for column in columns if column not in (reader.fieldnames or ())]
    if lacks:
        raise FedPGPError(f"{path} has no column {lacks[0]!r}; fetch the data set again")
    rows = list(reader)
    for number, row in enumerate(rows, 2):
        if any(row[column] is None for column in columns):
            raise FedPGPError(f"{path}, row {number} has too few columns; fetch the data set again")
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FedPGPError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise FedPGPError(f"{path} is no JSON ({error}); fetch the data set again") from error


def read_mat(path: Path, variable: str) -> np.ndarray:
    """A variable of a MATLAB file, flat: numbers, or a structured array, or objects (a cell array).

    Raises:
        FedPGPError: it cannot be read, or lacks the variable.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return np.ravel(loadmat(path, squeeze_me=True)[variable])
    except (OSError, KeyError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise FedPGPError(f"{path} cannot be read ({error!r}); fetch the data set again") from error


class _ArraysOnly(pickle.Unpickler):
    """Opens pickles of plain values and numpy arrays, and nothing that could run code."""

    ALLOWED = {
        *(
            (f"numpy.{core}.multiarray", name)
            for core in ("core", "_core")
            for name in ("_reconstruct", "scalar")
        ),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which a data file has no need of"
            )
        return super().find_class(module, name)


def unpickle(path: Path):
    """The content of a pickle of plain values and numpy arrays (Python 2's too).

    Raises:
        FedPGPError: missing, truncated, or holding anything else.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        raise FedPGPError(f"{path} cannot be read ({error}); fetch the data set again") from error
