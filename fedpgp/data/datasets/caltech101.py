"""``caltech101``: 100 kinds of objects (Fei-Fei et al. 2004), without the background and the second
folder of faces, as in CoOp. There is no official split."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, subfolders
from fedpgp.data.listing import Listing, Zhou, in_three, listed

URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
SOURCE = Source(
    URL,
    "137 MB",
    (
        Archive(
            URL,
            "3138e1922a9193bfa496528edbbc45d0",
            ".",
            inner="caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
)
ZHOU = Zhou("split_zhou_Caltech101.json", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN")
IMAGES = "101_ObjectCategories"
LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")
RENAMED = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}


@register("caltech101")
def load(root: Path, *, download: bool = False) -> Dataset:
    """Caltech101. Labels follow the folders' names, upper case first, before four of them are
    renamed.

    Raises:
        FedPGPError: not there, or damaged.
    """
    folder = locate("caltech101", root, ("caltech-101", "caltech101"), (IMAGES,), SOURCE, download)
    listing = ZHOU.read(folder, IMAGES) or _ours(folder)
    return listing.dataset("caltech101", "a photo of a {}.", folder)


def _ours(folder: Path) -> Listing:
    folders = [name for name in subfolders(folder / IMAGES) if name not in LEFT_OUT]
    names = [RENAMED.get(name, name) for name in folders]
    rows = listed(folder / IMAGES, folders, f"{IMAGES}/")
    return Listing(names, *in_three(rows), ZHOU.absent("our own, 50 % / 20 % / 30 % of each class"))
