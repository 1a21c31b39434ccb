"""``domainnet``: 345 classes in six domains (Peng et al. 2019), and ``domainnet10``, the ten
classes of FedBN and of most federated papers since."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.datasets.domains import Row, build, choose, fedbn_lists, from_fedbn, from_folders
from fedpgp.data.files import Source, locate, read_lines
from fedpgp.data.listing import collect
from fedpgp.errors import FedPGPError

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
TEN = (
    "bird",
    "feather",
    "headphones",
    "ice_cream",
    "teapot",
    "tiger",
    "whale",
    "windmill",
    "wine_glass",
    "zebra",
)
FOLDERS = ("domainnet", "DomainNet", "domain_net")
LISTS = ("txt", "splits", ".")
"""Where the lists lie: as published, in Dassl, in FLiP."""
HOST = "http://csr.bu.edu/ftp/visda/2019/multi-source"
SOURCE = Source(
    f"infograph.zip, quickdraw.zip, real.zip, sketch.zip from {HOST}, clipart.zip and "
    f"painting.zip from {HOST}/groundtruth (the cleaned ones), and the lists DOMAIN_train.txt "
    "and DOMAIN_test.txt beside them (fair use; see ai.bu.edu/M3SDA)",
    "17 GiB",
)


@register("domainnet")
def domainnet(
    root: Path, *, download: bool = False, domains: str | Sequence[str] | None = None
) -> Dataset:
    """DomainNet, the official split. The classes are the union of all lists, because one list may
    lack some (t-shirt has no training image among the paintings).

    Args:
        domains: some of :data:`DOMAINS`; None is all.

    Raises:
        FedPGPError: unknown domain; not there, or damaged.
    """
    chosen = choose("domainnet", domains, DOMAINS)
    markers = [m for d in chosen for m in (d, *(_places(d, part) for part in ("train", "test")))]
    folder = locate("domainnet", root, FOLDERS, markers, SOURCE, download)
    lists = _lists(folder)
    names: dict[int, str] = {}
    for (domain, part), rows in lists.items():
        collect(
            names,
            ((label, path.split("/")[1]) for path, label in rows),
            folder / f"{domain}_{part}.txt",
        )
    # All 345 are there in the published lists. In an excerpt of them the labels close up.
    place = {label: i for i, label in enumerate(sorted(names))}

    def rows(part: str) -> list[Row]:
        return [
            (path, place[label], domain) for domain in chosen for path, label in lists[domain, part]
        ]

    class_names = [names[label] for label in place]
    return build(
        "domainnet", class_names, folder, rows("train"), None, rows("test"), "split: official lists"
    )


@register("domainnet10")
def domainnet10(
    root: Path, *, download: bool = False, domains: str | Sequence[str] | None = None
) -> Dataset:
    """Ten classes of DomainNet, in FedBN's order: by FedBN's pickles, else by the
    official lists, else by folders.

    Args:
        domains: some of :data:`DOMAINS`; None is all.

    Raises:
        FedPGPError: unknown domain; not there, or damaged.
    """
    chosen = choose("domainnet10", domains, DOMAINS)
    folder = locate("domainnet10", root, FOLDERS, chosen, SOURCE, download)
    if fedbn_lists(folder, chosen):
        return from_fedbn("domainnet10", folder, chosen, TEN)
    lists = _lists(folder)
    if not all((domain, part) in lists for domain in chosen for part in ("train", "test")):
        return from_folders("domainnet10", folder, {domain: domain for domain in chosen}, TEN)
    label = {name: i for i, name in enumerate(TEN)}

    def rows(part: str) -> list[Row]:
        found = (
            (path, path.split("/")[1], domain)
            for domain in chosen
            for path, _ in lists[domain, part]
        )
        return [(path, label[name], domain) for path, name, domain in found if name in label]

    return build(
        "domainnet10", TEN, folder, rows("train"), None, rows("test"), "split: official lists"
    )


def _places(domain: str, part: str) -> tuple[str, ...]:
    return tuple(f"{where}/{domain}_{part}.txt".removeprefix("./") for where in LISTS)


def _lists(folder: Path) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """The lists that are there, of all domains: (domain, part) -> (path, label)."""
    lists = {}
    for domain in DOMAINS:
        for part in ("train", "test"):
            path = next((folder / p for p in _places(domain, part) if (folder / p).exists()), None)
            if path is None:
                continue
            try:
                # A path may have spaces; the label is what stands last.
                rows = [line.rsplit(maxsplit=1) for line in read_lines(path)]
                lists[domain, part] = [(file, int(label)) for file, label in rows]
            except ValueError as error:
                raise FedPGPError(
                    f"{path} has a line that is no path and label ({error}); fetch it again"
                ) from error
            strange = [file for file, _ in lists[domain, part] if file.count("/") != 2]
            if strange:
                raise FedPGPError(
                    f"{path}: {strange[0]!r} is no path DOMAIN/CLASS/FILE; fetch it again"
                )
    return lists
