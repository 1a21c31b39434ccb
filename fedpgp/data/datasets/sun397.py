"""``sun397``: 397 scenes (Xiao et al. 2010); the first official partition: 50 images of each for
training, 50 for testing."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Archive, Source, locate, read_lines
from fedpgp.data.listing import Listing, Rows, Zhou
from fedpgp.errors import FedPGPError

HOST = "https://vision.princeton.edu/projects/2010/SUN"
SOURCE = Source(
    f"{HOST}/SUN397.tar.gz and {HOST}/download/Partitions.zip",
    "36.4 GiB",
    (
        Archive(f"{HOST}/SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a", "sun397"),
        Archive(f"{HOST}/download/Partitions.zip", None, "sun397"),
    ),
)
ZHOU = Zhou("split_zhou_SUN397.json", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq")


@register("sun397")
def load(root: Path, *, download: bool = False) -> Dataset:
    """SUN397: CoOp's ``sun397/SUN397``, or torchvision's ``SUN397`` with the
    partitions beside it or in it.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = ("SUN397", (ZHOU.file, "Training_01.txt", "SUN397/Training_01.txt"))
    folder = locate("sun397", root, ("sun397", "."), markers, SOURCE, download)
    listing = ZHOU.read(folder, "SUN397") or _official(folder)
    return listing.dataset("sun397", "a photo of a {}.", folder)


def _official(folder: Path) -> Listing:
    def lines(name: str) -> list[str]:
        inside = folder / "SUN397" / name
        return [
            line.strip().strip("/")
            for line in read_lines(inside if inside.exists() else folder / name)
        ]

    scenes = lines("ClassName.txt")
    label = {scene: i for i, scene in enumerate(scenes)}

    def rows(name: str) -> Rows:
        files = lines(name)
        strangers = [file for file in files if file.rsplit("/", 1)[0] not in label]
        if strangers:
            raise FedPGPError(
                f"{name} lists {strangers[0]}, whose scene ClassName.txt in {folder} lacks"
            )
        return [(f"SUN397/{file}", label[file.rsplit("/", 1)[0]]) for file in files]

    # a/apartment_building/outdoor -> outdoor apartment_building
    names = [" ".join(reversed(scene.split("/")[1:])) for scene in scenes]
    note = ZHOU.absent("official partition 01")
    return Listing(names, rows("Training_01.txt"), None, rows("Testing_01.txt"), note)
