"""What readers of public data sets share: finding and listing folders, fetching archives, opening pickles safely."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpgp.data.base import DATA_VARIABLE
from fedpgp.data.store import locked
from fedpgp.errors import FedPGPError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Archive:
    """A file to fetch: its address, its MD5, and the folder (below the data root) it is unpacked or put into."""

    url: str
    md5: str
    into: str


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


def locate(
    name: str, root: Path, folders: Sequence[str], markers: Sequence[str], source: Source, download: bool
) -> Path:
    """The data set's folder: the first of ``folders`` below ``root`` that holds all ``markers``; fetched first if
    asked.

    Raises:
        FedPGPError: there is none; says what to fetch, from where, how large, and where to put it.
    """
    found = _find(root, folders, markers)
    if found is None and download and source.archives:
        with locked(root / f"{name}.download"):
            if _find(root, folders, markers) is None:  # not fetched by another process while this one waited
                _fetch(name, root, source)
        found = _find(root, folders, markers)
    if found is not None:
        return found
    wanted = " and ".join(str(root / folders[0] / marker) for marker in markers)
    others = f" (or in {' or '.join(folders[1:])})" if len(folders) > 1 else ""
    by_itself = ", or set dataset.download=true," if source.archives else ""
    raise FedPGPError(
        f"data set {name} is not in {root}: fetch {source.page} ({source.size}){by_itself} so that {wanted} "
        f"exist{others}; another place is dataset.root=FOLDER or the environment variable {DATA_VARIABLE}"
    )


def _find(root: Path, folders: Sequence[str], markers: Sequence[str]) -> Path | None:
    return next((root / f for f in folders if all((root / f / marker).exists() for marker in markers)), None)


def _fetch(name: str, root: Path, source: Source) -> None:
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    import fedpgp._torchvision  # noqa: F401

    for archive in source.archives:
        target = root / archive.into
        packed = archive.url.endswith((".tar.gz", ".tgz", ".zip", ".tar"))
        try:
            (download_and_extract_archive if packed else download_url)(archive.url, str(target), md5=archive.md5)
        except (OSError, RuntimeError, EOFError) as error:
            raise FedPGPError(
                f"data set {name}: {archive.url} cannot be fetched ({error}); fetch it by hand ({source.size}) and "
                f"unpack it in {target}"
            ) from error


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted (upper case first); hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def pictures(folder: Path) -> list[str]:
    """Names of the picture files in a folder, sorted; hidden ones left out."""
    names = (path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(name for name in names if not name.startswith("."))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        FedPGPError: it cannot be read.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FedPGPError(f"{path} cannot be read ({error}); fetch the data set again") from error


class _ArraysOnly(pickle.Unpickler):
    """Opens pickles of plain values and numpy arrays, and nothing that could run code."""

    ALLOWED = {
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a data file has no need of")
        return super().find_class(module, name)


def unpickle(path: Path):
    """The content of a pickle of plain values and numpy arrays (Python 2's too).

    Raises:
        FedPGPError: missing, truncated, or holding anything else.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except (OSError, EOFError, pickle.UnpicklingError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise FedPGPError(f"{path} cannot be read ({error}); fetch the data set again") from error
