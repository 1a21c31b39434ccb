"""``fgvc_aircraft``: 100 variants of aircraft (Maji et al. 2013), 3,334 / 3,333 / 3,333 images."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, read_columns, read_lines
from fedpgp.data.listing import Listing, Rows
from fedpgp.errors import FedPGPError

URL = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
SOURCE = Source(URL, "about 2.6 GB", (Archive(URL, None, "."),))
FOLDERS = ("fgvc_aircraft", "fgvc-aircraft-2013b/data", "fgvc_aircraft/data")


@register("fgvc_aircraft")
def load(root: Path, *, download: bool = False) -> Dataset:
    """FGVC-Aircraft, the official split. Labels are the lines of variants.txt.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = ("images", "variants.txt", "images_variant_train.txt")
    folder = locate("fgvc_aircraft", root, FOLDERS, markers, SOURCE, download)
    names = [line.strip() for line in read_lines(folder / "variants.txt")]
    label = {name: i for i, name in enumerate(names)}

    def rows(part: str) -> Rows:
        path = folder / f"images_variant_{part}.txt"
        found = read_columns(path, 2)  # names have spaces
        strangers = [name for _, name in found if name not in label]
        if strangers:
            raise FedPGPError(
                f"{path} names {strangers[0]}, which variants.txt lacks; fetch the data set again"
            )
        return [(f"images/{file}.jpg", label[name]) for file, name in found]

    listing = Listing(
        names, rows("train"), rows("val"), rows("test"), "split: official train, val and test"
    )
    return listing.dataset("fgvc_aircraft", "a photo of a {}, a type of aircraft.", folder)
