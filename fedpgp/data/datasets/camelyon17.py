"""``camelyon17``: patches of lymph nodes from five hospitals, with or without tumour (WILDS, Koh et
al. 2021; slides of CAMELYON17), 455,954 images of 96x96."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, register
from fedpgp.data.datasets.domains import Row, build, choose
from fedpgp.data.files import Source, locate, read_table, shuffled
from fedpgp.errors import FedPGPError, check_number

HOSPITALS = ("hospital1", "hospital2", "hospital3", "hospital4", "hospital5")
"""Centre 0 to 4 of ``metadata.csv``."""
CLASSES = ("normal tissue", "tumor tissue")
TEMPLATE = "a histopathology image of {}."
FOLDERS = ("camelyon17_v1.0", "camelyon17")
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
SPLITS = {"0": "train", "1": "test"}
SOURCE = Source(
    "camelyon17_v1.0 of WILDS (wilds.stanford.edu/datasets/#camelyon17)",
    "10 GB",
)


@register("camelyon17")
def load(
    root: Path,
    *,
    download: bool = False,
    domains: str | Sequence[str] | None = None,
    share: float = 1.0,
) -> Dataset:
    """Camelyon17-WILDS. WILDS draws a tenth of all patches, of every hospital, out of training
    (``split`` 1): these are for testing, so that every hospital has both. WILDS' own test is
    another hospital: ``protocol=leave_one_domain_out protocol.held_out=hospital3
    protocol.held_out_images=all``.

    Args:
        domains: some of :data:`HOSPITALS`; None is all.
        share: part of the patches of each hospital, class and split; which ones hangs on their
            names alone.

    Raises:
        FedPGPError: unknown hospital; not there, or damaged.
    """
    check_number("dataset.share", share, above=0, most=1)
    chosen = choose("camelyon17", domains, HOSPITALS)
    folder = locate("camelyon17", root, FOLDERS, ["metadata.csv", "patches"], SOURCE, download)
    path = folder / "metadata.csv"
    groups: dict[tuple[str, int, str], list[str]] = {}
    for line in read_table(path, COLUMNS):
        centre, label, split = line["center"], line["tumor"], SPLITS.get(line["split"])
        if centre not in tuple("01234") or label not in ("0", "1") or split is None:
            raise FedPGPError(
                f"{path}: a patch of patient {line['patient']} has center {centre!r}, tumor "
                f"{label!r} and split {line['split']!r}, which is no row of WILDS'; fetch it again"
            )
        if (hospital := HOSPITALS[int(centre)]) in chosen:
            groups.setdefault((hospital, int(label), split), []).append(_path(line))
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for (hospital, label, split), paths in sorted(groups.items()):
        if share < 1:
            paths = sorted(shuffled(paths, 0)[: max(1, round(share * len(paths)))])
        rows[split] += [(path, label, hospital) for path in paths]
    note = "split: a tenth of the patches, which WILDS draws out of training, for testing"
    if share < 1:
        note += f"; {share:g} of the patches of each hospital and class"
    return build("camelyon17", CLASSES, folder, rows["train"], None, rows["test"], note, TEMPLATE)


def _path(line: dict[str, str]) -> str:
    slide = f"patient_{line['patient']}_node_{line['node']}"
    place = f"x_{line['x_coord']}_y_{line['y_coord']}"
    return f"patches/{slide}/patch_{slide}_{place}.png"
