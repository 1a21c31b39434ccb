"""``oxford_pets``: 37 breeds (Parkhi et al. 2012), 3,680 images for training and 3,669 for
testing."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, read_columns
from fedpgp.data.listing import Listing, Rows, Zhou, collect, dense

HOST = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
SOURCE = Source(
    f"{HOST}/images.tar.gz and annotations.tar.gz",
    "774 MiB",
    (
        Archive(f"{HOST}/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford_pets"),
        Archive(f"{HOST}/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "oxford_pets"),
    ),
)
ZHOU = Zhou("split_zhou_OxfordPets.json", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs")


@register("oxford_pets")
def load(root: Path, *, download: bool = False) -> Dataset:
    """Oxford-IIIT Pet.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = ("images", (ZHOU.file, "annotations/trainval.txt"))
    folder = locate(
        "oxford_pets", root, ("oxford_pets", "oxford-iiit-pet"), markers, SOURCE, download
    )
    listing = ZHOU.read(folder, "images") or _official(folder)
    return listing.dataset("oxford_pets", "a photo of a {}, a type of pet.", folder)


def _official(folder: Path) -> Listing:
    names: dict[int, str] = {}

    def rows(part: str) -> Rows:
        path = folder / "annotations" / f"{part}.txt"
        found = [(file, int(number) - 1) for file, number, *_ in read_columns(path, 4)]
        collect(names, ((label, file.rsplit("_", 1)[0].lower()) for file, label in found), path)
        return [(f"images/{file}.jpg", label) for file, label in found]

    train, test = rows("trainval"), rows("test")
    return Listing(
        dense(names, folder / "annotations"),
        train,
        None,
        test,
        ZHOU.absent("official trainval and test"),
    )
