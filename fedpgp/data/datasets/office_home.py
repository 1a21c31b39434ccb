"""``office_home``: 65 things of office and home in four domains (Venkateswara et al.
2017), 15,588 images."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.datasets.domains import choose, from_folders
from fedpgp.data.files import Source, locate, subfolders

DOMAINS = ("art", "clipart", "product", "real_world")
SPELLINGS = {
    "art": ("art", "Art"),
    "clipart": ("clipart", "Clipart"),
    "product": ("product", "Product"),
    "real_world": ("real_world", "Real World", "Real_World", "RealWorld"),
}
FOLDERS = ("office_home", "OfficeHomeDataset_10072016", "OfficeHome")
SOURCE = Source(
    "OfficeHomeDataset_10072016 from https://www.hemanthdv.org/officeHomeDataset.html",
    "about 1.1 GB",
)


@register("office_home")
def load(
    root: Path, *, download: bool = False, domains: str | Sequence[str] | None = None
) -> Dataset:
    """Office-Home: the original archive, or Dassl's folders. Labels follow the sorted folders, of
    all domains that are there.

    Args:
        domains: some of :data:`DOMAINS`; None is all.

    Raises:
        FedPGPError: unknown domain; not there.
    """
    chosen = choose("office_home", domains, DOMAINS)
    folder = locate(
        "office_home", root, FOLDERS, [SPELLINGS[domain] for domain in chosen], SOURCE, download
    )
    found = {d: next((s for s in SPELLINGS[d] if (folder / s).exists()), None) for d in DOMAINS}
    class_names = sorted(
        {name for where in found.values() if where for name in subfolders(folder / where)}
    )
    return from_folders(
        "office_home", folder, {domain: found[domain] for domain in chosen}, class_names
    )
