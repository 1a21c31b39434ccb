"""``cifar10`` and ``cifar100`` in the layout of their authors, which torchvision keeps
(``cifar-10-batches-py``).

Images are 32x32 and go through the model's own preprocessing, CLIP's statistics included.
"""

from pathlib import Path

import numpy as np

from fedpgp.data.base import ArraySplit, Dataset, register
from fedpgp.data.files import Archive, Source, locate, unpickle
from fedpgp.errors import FedPGPError

HOST = "https://www.cs.toronto.edu/~kriz"
TEMPLATE = "a photo of a {}."

# Superclass of each CIFAR-100 class, classes in label order.
# fmt: off
SUPERCLASSES = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)
# fmt: on


@register("cifar10")
def cifar10(root: Path, *, download: bool = False) -> Dataset:
    """CIFAR-10: 50,000 / 10,000 images of 10 classes.

    Raises:
        FedPGPError: not there, or damaged.
    """
    source = _source("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "162 MiB")
    folders = ("cifar-10-batches-py", "cifar-10/cifar-10-batches-py", "cifar10/cifar-10-batches-py")
    folder = locate("cifar10", root, folders, ("test_batch", "batches.meta"), source, download)
    names = _names(folder / "batches.meta", "label_names")
    train = _split([folder / f"data_batch_{i}" for i in range(1, 6)], "labels", len(names))
    return Dataset(
        "cifar10",
        names,
        TEMPLATE,
        train,
        None,
        _split([folder / "test_batch"], "labels", len(names)),
    )


@register("cifar100")
def cifar100(root: Path, *, download: bool = False) -> Dataset:
    """CIFAR-100: 50,000 / 10,000 images of 100 classes in 20 superclasses.

    Raises:
        FedPGPError: not there, or damaged.
    """
    source = _source("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "161 MiB")
    folders = ("cifar-100-python", "cifar-100/cifar-100-python", "cifar100/cifar-100-python")
    folder = locate("cifar100", root, folders, ("train", "test", "meta"), source, download)
    names = _names(folder / "meta", "fine_label_names")
    train, test = (_split([folder / part], "fine_labels", len(names)) for part in ("train", "test"))
    return Dataset(
        "cifar100", names, TEMPLATE, train, None, test, np.array(SUPERCLASSES, dtype=np.int64)
    )


def _source(file: str, md5: str, size: str) -> Source:
    return Source(f"{HOST}/{file}", size, (Archive(f"{HOST}/{file}", md5, "."),))


def _names(path: Path, key: str) -> list[str]:
    names = unpickle(path).get(key)
    if not names:
        raise FedPGPError(f"{path} has no {key}; fetch the data set again")
    return list(names)


def _split(paths: list[Path], key: str, classes: int) -> ArraySplit:
    pixels, labels = [], []
    for path in paths:
        batch = unpickle(path)
        try:
            data, mine = (
                np.asarray(batch["data"], dtype=np.uint8),
                np.asarray(batch[key], dtype=np.int64),
            )
            # A row holds the red plane, then the green, then the blue one.
            pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        except (KeyError, TypeError, ValueError) as error:
            raise FedPGPError(
                f"{path} is no CIFAR batch ({error!r}); fetch the data set again"
            ) from error
        if len(mine) != len(data) or (len(mine) and not 0 <= mine.min() <= mine.max() < classes):
            raise FedPGPError(
                f"{path} is damaged: its labels do not fit its images or classes; fetch the data "
                "set again"
            )
        labels.append(mine)
    return ArraySplit(np.concatenate(pixels), np.concatenate(labels))
