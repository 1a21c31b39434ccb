"""``stanford_cars``: 196 models of cars (Krause et al. 2013), 8,144 images for training
and 8,041 for testing."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Source, locate, read_mat
from fedpgp.data.listing import Listing, Rows, Zhou
from fedpgp.errors import FedPGPError

SOURCE = Source(
    "cars_train, cars_test, devkit and cars_test_annos_withlabels.mat from a copy of the data "
    "set; its authors' page, ai.stanford.edu/~jkrause/cars/car_dataset.html, is gone and "
    "nothing fetches it by itself",
    "1.82 GiB",
)
ZHOU = Zhou("split_zhou_StanfordCars.json", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT")


@register("stanford_cars")
def load(root: Path, *, download: bool = False) -> Dataset:
    """Stanford Cars. Names begin with the year, as in CoOp.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = ("cars_train", "cars_test", (ZHOU.file, "devkit/cars_meta.mat"))
    folder = locate("stanford_cars", root, ("stanford_cars",), markers, SOURCE, download)
    listing = ZHOU.read(folder, "") or _official(folder)
    return listing.dataset("stanford_cars", "a photo of a {}.", folder)


def _official(folder: Path) -> Listing:
    names = []
    for name in read_mat(folder / "devkit" / "cars_meta.mat", "class_names"):
        *words, year = str(name).split()
        names.append(" ".join([year, *words]))

    def rows(images: str, path: Path) -> Rows:
        found = read_mat(path, "annotations")
        try:
            rows = [(f"{images}/{car['fname']}", int(car["class"]) - 1) for car in found]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise FedPGPError(
                f"{path} has no file names and classes ({error}); fetch it again"
            ) from error
        if any(not 0 <= label < len(names) for _, label in rows):
            raise FedPGPError(
                f"{path} has classes that devkit/cars_meta.mat lacks; fetch both again"
            )
        return rows

    train = rows("cars_train", folder / "devkit" / "cars_train_annos.mat")
    test = rows("cars_test", folder / "cars_test_annos_withlabels.mat")
    return Listing(names, train, None, test, ZHOU.absent("official train and test"))
