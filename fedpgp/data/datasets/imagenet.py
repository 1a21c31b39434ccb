"""``imagenet``: 1,000 classes (Deng et al. 2009), and ``imagenetv2``, ``imagenet_sketch``,
``imagenet_a``, ``imagenet_r``, images of other kinds to test on, which have no training images."""

from pathlib import Path

from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Source, locate, read_columns, subfolders
from fedpgp.data.listing import Listing, listed
from fedpgp.errors import FedPGPError

TEMPLATE = "a photo of a {}."
NAMES_FILE = "classnames.txt"


@register("imagenet")
def imagenet(root: Path, *, download: bool = False) -> Dataset:
    """ImageNet (ILSVRC 2012). Its validation images are the test split. Labels
    follow the sorted WordNet ids.

    Raises:
        FedPGPError: not there; a class without a name.
    """
    source = Source(
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org, after its "
        "terms are accepted there, and unpack both in one folder a class",
        "144 GiB",
    )
    folders = ("imagenet/images", "imagenet", "ILSVRC2012", "imagenet/ILSVRC/Data/CLS-LOC")
    folder = locate("imagenet", root, folders, ("train", "val"), source, download)
    ids = subfolders(folder / "train")
    strangers = sorted(set(subfolders(folder / "val")) - set(ids))
    if strangers or not subfolders(folder / "val"):
        raise FedPGPError(
            f"{folder / 'val'} must have one folder a class, as train has"
            + (f"; {strangers[0]} is not one of them" if strangers else "")
        )
    names, note = _names(root, folder)
    train, test = (listed(folder / part, ids, f"{part}/") for part in ("train", "val"))
    listing = Listing(_pick(names, ids, folder), train, None, test, note)
    return listing.dataset("imagenet", TEMPLATE, folder)


@register("imagenetv2")
def imagenetv2(root: Path, *, download: bool = False) -> Dataset:
    """ImageNetV2, matched frequency (Recht et al. 2019): the folders' names are the labels.

    Raises:
        FedPGPError: not there, or a folder that is no label.
    """
    images = "imagenetv2-matched-frequency-format-val"
    source = Source(
        "imagenetv2-matched-frequency.tar.gz, see https://github.com/modestyachts/ImageNetV2",
        "1.18 GiB",
    )
    folder = locate("imagenetv2", root, (f"imagenetv2/{images}", images), ("0",), source, download)
    by_id, note = _names(root, folder)
    names = list(by_id.values())  # as the lines of the file stand
    strangers = [
        name for name in subfolders(folder) if not (name.isdecimal() and int(name) < len(names))
    ]
    if strangers:
        raise FedPGPError(
            f"{folder / strangers[0]}: its name must be a label from 0 to {len(names) - 1}"
        )
    # By number: as strings, 10 would come before 2.
    folders = sorted(subfolders(folder), key=int)
    rows = [(path, int(folders[place])) for path, place in listed(folder, folders)]
    return Listing(names, None, None, rows, note).dataset("imagenetv2", TEMPLATE, folder)


@register("imagenet_sketch")
def imagenet_sketch(root: Path, *, download: bool = False) -> Dataset:
    """ImageNet-Sketch (Wang et al. 2019): 50,889 drawings of the 1,000 classes.

    Raises:
        FedPGPError: not there; a class without a name.
    """
    source = Source(
        "ImageNet-Sketch.zip, see https://github.com/HaohanWang/ImageNet-Sketch", "7.07 GiB"
    )
    return _by_id(
        "imagenet_sketch",
        root,
        ("imagenet-sketch/images", "imagenet-sketch", "sketch"),
        source,
        download,
    )


@register("imagenet_a")
def imagenet_a(root: Path, *, download: bool = False) -> Dataset:
    """ImageNet-A (Hendrycks et al. 2021): 7,500 images that models get wrong, of 200
    classes with labels 0 to 199.

    Raises:
        FedPGPError: not there; a class without a name.
    """
    source = Source(
        "imagenet-a.tar, see https://github.com/hendrycks/natural-adv-examples", "656 MiB"
    )
    return _by_id(
        "imagenet_a", root, ("imagenet-adversarial/imagenet-a", "imagenet-a"), source, download
    )


@register("imagenet_r")
def imagenet_r(root: Path, *, download: bool = False) -> Dataset:
    """ImageNet-R (Hendrycks et al. 2021): 30,000 renditions of 200 classes with labels 0 to 199.

    Raises:
        FedPGPError: not there; a class without a name.
    """
    source = Source("imagenet-r.tar, see https://github.com/hendrycks/imagenet-r", "2.04 GiB")
    return _by_id(
        "imagenet_r", root, ("imagenet-rendition/imagenet-r", "imagenet-r"), source, download
    )


def _by_id(
    name: str, root: Path, folders: tuple[str, ...], source: Source, download: bool
) -> Dataset:
    """A test set in folders named by WordNet id; labels follow their sorted names."""
    folder = locate(name, root, folders, (".",), source, download)
    ids = [found for found in subfolders(folder) if found[0] == "n" and found[1:].isdecimal()]
    if not ids:
        raise FedPGPError(
            f"data set {name}: {folder} has no folders named by WordNet id, such as n01440764"
        )
    names, note = _names(root, folder)
    return Listing(_pick(names, ids, folder), None, None, listed(folder, ids), note).dataset(
        name, TEMPLATE, folder
    )


def _names(root: Path, folder: Path) -> tuple[dict[str, str], str]:
    """WordNet id -> class name, and where from: CoOp's classnames.txt beside the images or in
    ``imagenet``, else open_clip's list, whose names differ in a few classes."""
    for place in (folder, folder.parent, root / "imagenet"):
        if (place / NAMES_FILE).exists():
            return dict(
                read_columns(place / NAMES_FILE, 2)
            ), f"class names: {place / NAMES_FILE} (CoOp)"
    open_clip = import_open_clip()
    from timm.data import ImageNetInfo

    names = dict(
        zip(ImageNetInfo("imagenet-1k").label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True)
    )
    return (
        names,
        f"class names: open_clip's; CoOp's are not there ({NAMES_FILE} in {folder.parent})",
    )


def _pick(names: dict[str, str], ids: list[str], folder: Path) -> list[str]:
    nameless = [wnid for wnid in ids if wnid not in names]
    if nameless:
        raise FedPGPError(f"{folder}: {nameless[0]} is no class that {NAMES_FILE} names")
    return [names[wnid] for wnid in ids]
