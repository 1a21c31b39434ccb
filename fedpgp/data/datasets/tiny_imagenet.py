"""``tiny_imagenet``: 200 classes of ImageNet in 64x64, 100,000 images for training; the 10,000
validation images are the test split, because the test images have no labels."""

from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.files import Source, locate, read_lines
from fedpgp.data.listing import Listing, listed
from fedpgp.errors import FedPGPError

SOURCE = Source(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip, under ImageNet's terms", "237 MiB"
)


@register("tiny_imagenet")
def load(root: Path, *, download: bool = False) -> Dataset:
    """Tiny-ImageNet. Labels follow the sorted WordNet ids; a name is the first of those words.txt
    gives.

    Raises:
        FedPGPError: not there, or damaged.
    """
    markers = ("wnids.txt", "words.txt", "train", "val/val_annotations.txt")
    folder = locate(
        "tiny_imagenet", root, ("tiny-imagenet-200", "tiny_imagenet"), markers, SOURCE, download
    )
    ids = sorted(line.strip() for line in read_lines(folder / "wnids.txt"))
    label = {wnid: i for i, wnid in enumerate(ids)}
    words = dict(line.split("\t", 1) for line in read_lines(folder / "words.txt") if "\t" in line)
    missing = [
        wnid
        for wnid in ids
        if wnid not in words or not (folder / "train" / wnid / "images").is_dir()
    ]
    if missing:
        raise FedPGPError(
            f"{folder}: {missing[0]} has no name in words.txt, or no images in train; fetch it "
            "again"
        )
    names = [words[wnid].split(",")[0].strip() for wnid in ids]
    train = listed(folder / "train", [f"{wnid}/images" for wnid in ids], "train/")
    test = []
    for line in read_lines(folder / "val" / "val_annotations.txt"):
        file, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label:
            raise FedPGPError(
                f"{folder / 'val' / 'val_annotations.txt'}: {line!r} names no class; fetch it again"
            )
        test.append((f"val/images/{file}", label[wnid]))
    note = "split: official train and validation; labels: sorted WordNet ids"
    return Listing(names, train, None, test, note).dataset(
        "tiny_imagenet", "a photo of a {}.", folder
    )
