"""``fed_isic2019``: 23,247 skin lesions of 8 kinds from six centres (FLamby, du Terrail et al.
2022; the images are those of ISIC 2019)."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.datasets.domains import Row, build, choose
from fedpgp.data.files import Source, locate, read_table
from fedpgp.errors import FedPGPError

CENTRES = ("bcn", "vidir_molemax", "vidir_modern", "rosendahl", "msk", "vienna_dias")
"""In FLamby's order: centre 0 to 5."""
CLASSES = (
    "melanoma",
    "melanocytic nevus",
    "basal cell carcinoma",
    "actinic keratosis",
    "benign keratosis",
    "dermatofibroma",
    "vascular lesion",
    "squamous cell carcinoma",
)
"""In the order of ISIC 2019: MEL, NV, BCC, AK, BKL, DF, VASC, SCC."""
TEMPLATE = "a dermoscopy image of {}."
FOLDERS = ("fed_isic2019", "fed_isic_2019", "FedISIC2019", "isic2019")
IMAGES = ("ISIC_2019_Training_Input_preprocessed", "ISIC_2019_Training_Input")
LIST = "train_test_split"
SOURCE = Source(
    "what FLamby's flamby/datasets/fed_isic2019/dataset_creation_scripts makes, and beside it the "
    "file train_test_split of that folder (github.com/owkin/FLamby)",
    "9.1 GB",
)


@register("fed_isic2019")
def load(
    root: Path, *, download: bool = False, domains: str | Sequence[str] | None = None
) -> Dataset:
    """Fed-ISIC2019 with FLamby's split. Images are FLamby's preprocessed ones where they are there
    (shorter side 224, colour constancy), else those of ISIC 2019.

    Args:
        domains: some of :data:`CENTRES`; None is all.

    Raises:
        FedPGPError: unknown centre; not there, or damaged.
    """
    chosen = choose("fed_isic2019", domains, CENTRES)
    folder = locate("fed_isic2019", root, FOLDERS, [IMAGES, LIST], SOURCE, download)
    images = next(name for name in IMAGES if (folder / name).is_dir())
    path = folder / LIST
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for line in read_table(path, ("image", "target", "center", "fold")):
        image, fold = line["image"], line["fold"]
        label, centre = _number(line["target"], CLASSES), _number(line["center"], CENTRES)
        if label is None or centre is None or fold not in rows:
            raise FedPGPError(
                f"{path}: image {image} has target {line['target']!r}, center {line['center']!r} "
                f"and fold {fold!r}, which is no row of FLamby's; fetch it again"
            )
        if CENTRES[centre] in chosen:
            rows[fold].append((f"{images}/{image}.jpg", label, CENTRES[centre]))
    note = f"split: FLamby's; images: {images}"
    return build("fed_isic2019", CLASSES, folder, rows["train"], None, rows["test"], note, TEMPLATE)


def _number(text: str, of: Sequence[str]) -> int | None:
    return int(text) if text in map(str, range(len(of))) else None
