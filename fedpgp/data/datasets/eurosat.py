"""``eurosat``: 10 kinds of land in 27,000 Sentinel-2 images of 64x64 (Helber et al. 2019). There
is no official split."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, subfolders
from fedpgp.data.listing import Listing, Zhou, in_three, listed

_COMMIT = "c877bcd43f099cd0196738f714544e355477f3fd"
URL = f"https://huggingface.co/datasets/torchgeo/eurosat/resolve/{_COMMIT}/EuroSAT.zip"
SOURCE = Source(URL, "90 MiB", (Archive(URL, "c8fa014336c82ac7804f0398fcb19387", "eurosat"),))
ZHOU = Zhou("split_zhou_EuroSAT.json", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o")
NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


@register("eurosat")
def load(root: Path, *, download: bool = False) -> Dataset:
    """EuroSAT (RGB). Labels follow the folders' names, before they are renamed.

    Raises:
        FedPGPError: not there, or damaged.
    """
    folder = locate("eurosat", root, ("eurosat",), ("2750",), SOURCE, download)
    listing = ZHOU.read(folder, "2750") or _ours(folder)
    return listing.dataset("eurosat", "a centered satellite photo of {}.", folder)


def _ours(folder: Path) -> Listing:
    folders = subfolders(folder / "2750")
    rows = listed(folder / "2750", folders, "2750/")
    note = ZHOU.absent("our own, 50 % / 20 % / 30 % of each class")
    return Listing([NAMES.get(name, name) for name in folders], *in_three(rows), note)
