"""``dtd``: 47 textures (Cimpoi et al. 2014), 120 images each; the first of ten official
partitions."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, read_lines, subfolders
from fedpgp.data.listing import Listing, Rows, Zhou
from fedpgp.errors import FedPGPError

URL = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"
SOURCE = Source(URL, "608 MiB", (Archive(URL, "fff73e5086ae6bdbea199a49dfb8a4c1", "."),))
ZHOU = Zhou("split_zhou_DescribableTextures.json", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x")


@register("dtd")
def load(root: Path, *, download: bool = False) -> Dataset:
    """Describable Textures.

    Raises:
        FedPGPError: not there, or damaged.
    """
    folder = locate(
        "dtd",
        root,
        ("dtd", "dtd/dtd"),
        ("images", (ZHOU.file, "labels/train1.txt")),
        SOURCE,
        download,
    )
    listing = ZHOU.read(folder, "images") or _official(folder)
    return listing.dataset("dtd", "{} texture.", folder)


def _official(folder: Path) -> Listing:
    names = subfolders(folder / "images")
    label = {name: i for i, name in enumerate(names)}

    def rows(part: str) -> Rows:
        path = folder / "labels" / f"{part}1.txt"
        files = [line.strip() for line in read_lines(path)]
        strangers = [file for file in files if file.split("/")[0] not in label]
        if strangers:
            raise FedPGPError(
                f"{path} lists {strangers[0]}, whose folder is not in {folder / 'images'}"
            )
        return [(f"images/{file}", label[file.split("/")[0]]) for file in files]

    return Listing(
        names, rows("train"), rows("val"), rows("test"), ZHOU.absent("official partition 1")
    )
