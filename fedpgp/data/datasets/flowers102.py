"""``flowers102``: 102 flowers (Nilsback and Zisserman 2008), 1,020 / 1,020 / 6,149 images
in the official split."""

from pathlib import Path

from fedpgp.clip.torchvision_fix import fix_torchvision
from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, read_json, read_mat
from fedpgp.data.listing import Listing, Rows, Zhou
from fedpgp.errors import FedPGPError

HOST = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
SOURCE = Source(
    f"{HOST}/102flowers.tgz, imagelabels.mat and setid.mat",
    "337 MiB",
    (
        Archive(f"{HOST}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "oxford_flowers"),
        Archive(f"{HOST}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "oxford_flowers"),
        Archive(f"{HOST}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "oxford_flowers"),
    ),
)
ZHOU = Zhou("split_zhou_OxfordFlowers.json", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT")


@register("flowers102")
def load(root: Path, *, download: bool = False) -> Dataset:
    """Flowers102. Labels are the published numbers less one, which is not the alphabet's order.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = ("jpg", (ZHOU.file, "setid.mat"))
    folder = locate(
        "flowers102", root, ("oxford_flowers", "flowers-102"), markers, SOURCE, download
    )
    listing = ZHOU.read(folder, "jpg") or _official(folder)
    return listing.dataset("flowers102", "a photo of a {}, a type of flower.", folder)


def _official(folder: Path) -> Listing:
    labels = read_mat(folder / "imagelabels.mat", "labels").astype(int) - 1
    names = _names(folder)
    if not len(labels) or not 0 <= labels.min() <= labels.max() < len(names):
        raise FedPGPError(
            f"{folder / 'imagelabels.mat'} does not fit the {len(names)} names of flowers; fetch "
            "it again"
        )

    def rows(variable: str) -> Rows:
        ids = read_mat(folder / "setid.mat", variable).astype(int)
        if len(ids) and not 1 <= ids.min() <= ids.max() <= len(labels):
            raise FedPGPError(
                f"{folder / 'setid.mat'} names images that imagelabels.mat lacks; fetch both again"
            )
        return [(f"jpg/image_{i:05d}.jpg", int(labels[i - 1])) for i in ids]

    return Listing(
        names,
        rows("trnid"),
        rows("valid"),
        rows("tstid"),
        ZHOU.absent("official train, val and test"),
    )


def _names(folder: Path) -> list[str]:
    """From CoOp's cat_to_name.json when it is there, else as torchvision has them."""
    path = folder / "cat_to_name.json"
    if path.exists():
        names = read_json(path)
        try:
            return [names[str(number)] for number in range(1, len(names) + 1)]
        except (KeyError, TypeError) as error:
            raise FedPGPError(
                f"{path} does not name the classes 1, 2, …; fetch it again"
            ) from error
    fix_torchvision()
    from torchvision.datasets import Flowers102

    if not hasattr(Flowers102, "classes"):
        raise FedPGPError(
            "this torchvision does not know the names of the flowers: put cat_to_name.json in "
            f"{folder}"
        )
    return list(Flowers102.classes)
