"""``office_caltech10``: the ten classes that Office-31 and Caltech-256 share, four domains (Gong et
al. 2012), 2,533 images."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.datasets.domains import choose, fedbn_lists, from_fedbn, from_folders
from fedpgp.data.files import Source, locate

DOMAINS = ("amazon", "caltech", "dslr", "webcam")
CLASSES = (
    "back_pack",
    "bike",
    "calculator",
    "headphones",
    "keyboard",
    "laptop_computer",
    "monitor",
    "mouse",
    "mug",
    "projector",
)
FOLDERS = ("office_caltech_10", "office_caltech10", "OfficeCaltech10")
SOURCE = Source(
    "office_caltech_10_dataset.zip from https://huggingface.co/datasets/Jemary/FedBN_Dataset",
    "some hundred MB",
)


@register("office_caltech10")
def load(
    root: Path, *, download: bool = False, domains: str | Sequence[str] | None = None
) -> Dataset:
    """Office-Caltech10, classes in FedBN's order; its split when its pickles are there.

    Args:
        domains: some of :data:`DOMAINS`; None is all.

    Raises:
        FedPGPError: unknown domain; not there, or damaged.
    """
    chosen = choose("office_caltech10", domains, DOMAINS)
    folder = locate("office_caltech10", root, FOLDERS, chosen, SOURCE, download)
    if fedbn_lists(folder, chosen):
        return from_fedbn("office_caltech10", folder, chosen, CLASSES)
    return from_folders("office_caltech10", folder, {domain: domain for domain in chosen}, CLASSES)
