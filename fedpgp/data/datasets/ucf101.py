"""``ucf101``: 101 actions (Soomro et al. 2012), the middle frame of each video as CoOp
publishes them; official list
01: 9,537 for training, 3,783 for testing."""

import re
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Source, locate, read_columns, read_lines, subfolders
from fedpgp.data.listing import Listing, Rows, Zhou, dense
from fedpgp.errors import FedPGPError

SOURCE = Source(
    "the middle frames of CoOp (UCF-101-midframes.zip, "
    "drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O) and the lists "
    "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip (or CoOp's "
    "split)",
    "13,320 images, some hundred MB",
)
ZHOU = Zhou("split_zhou_UCF101.json", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y")
IMAGES, LISTS = "UCF-101-midframes", "ucfTrainTestlist"


@register("ucf101")
def load(root: Path, *, download: bool = False) -> Dataset:
    """UCF101.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = (IMAGES, (ZHOU.file, f"{LISTS}/trainlist01.txt"))
    folder = locate("ucf101", root, ("ucf101",), markers, SOURCE, download)
    listing = ZHOU.read(folder, IMAGES) or _official(folder)
    return listing.dataset("ucf101", "a photo of a person doing {}.", folder)


def _official(folder: Path) -> Listing:
    path = folder / LISTS / "classInd.txt"
    actions = {int(number) - 1: action for number, action in read_columns(path, 2)}
    names = ["_".join(re.findall("[A-Z][^A-Z]*", action)) for action in dense(actions, path)]

    def plain(name: str) -> str:
        # Lists and folders spell one action in two ways (HandstandPushups, HandStandPushups).
        return name.replace("_", "").lower()

    label = {plain(name): i for i, name in enumerate(names)}
    folders = {plain(name): name for name in subfolders(folder / IMAGES)}

    def rows(part: str) -> Rows:
        rows = []
        for line in read_lines(folder / LISTS / f"{part}list01.txt"):
            action, video = line.split()[0].split("/")  # training lists have the label behind it
            if plain(action) not in label:
                raise FedPGPError(
                    f"{LISTS}/{part}list01.txt in {folder} names {action}, which classInd.txt lacks"
                )
            where = folders.get(plain(action), names[label[plain(action)]])
            rows.append(
                (f"{IMAGES}/{where}/{video.removesuffix('.avi')}.jpg", label[plain(action)])
            )
        return rows

    return Listing(names, rows("train"), None, rows("test"), ZHOU.absent("official list 01"))
