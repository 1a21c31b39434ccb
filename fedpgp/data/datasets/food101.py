"""``food101``: 101 dishes (Bossard et al. 2014), 750 images each for training (some labels
wrong) and 250 for testing."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, read_json, read_lines, subfolders
from fedpgp.data.listing import Listing, Rows, Zhou
from fedpgp.errors import FedPGPError

URL = "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"
SOURCE = Source(URL, "4.65 GiB", (Archive(URL, "85eeb15f3717b99a5da872d97d918f87", "."),))
ZHOU = Zhou("split_zhou_Food101.json", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl")


@register("food101")
def load(root: Path, *, download: bool = False) -> Dataset:
    """Food-101.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = ("images", (ZHOU.file, "meta/train.txt", "meta/train.json"))
    folder = locate("food101", root, ("food-101", "food101"), markers, SOURCE, download)
    listing = ZHOU.read(folder, "images") or _official(folder)
    return listing.dataset("food101", "a photo of {}, a type of food.", folder)


def _official(folder: Path) -> Listing:
    names = subfolders(folder / "images")
    label = {name: i for i, name in enumerate(names)}

    def rows(part: str) -> Rows:
        path = folder / "meta" / f"{part}.txt"
        if path.exists():
            files = [line.strip() for line in read_lines(path)]
        else:
            path = path.with_suffix(".json")
            files = [file for members in read_json(path).values() for file in members]
        strangers = [file for file in files if file.split("/")[0] not in label]
        if strangers:
            raise FedPGPError(
                f"{path} lists {strangers[0]}, whose folder is not in {folder / 'images'}"
            )
        return [(f"images/{file}.jpg", label[file.split("/")[0]]) for file in files]

    return Listing(names, rows("train"), None, rows("test"), ZHOU.absent("official train and test"))
