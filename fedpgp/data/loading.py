"""Loads a data set by its name, perhaps with validation images to measure on, or without
the images that cannot be read."""

import inspect
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedpgp.config import DatasetSection
from fedpgp.data.base import DATASETS, VALIDATION_FRACTION, Dataset, Split, Subset, data_root
from fedpgp.data.store import cache_folder, write_cache
from fedpgp.errors import MALFORMED, FedPGPError, unknown
from fedpgp.seeding import generator

log = logging.getLogger(__name__)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = False,
    on_bad_image: str = "error",
    evaluate_on: str = "test",
    **options,
) -> Dataset:
    """Loads a data set; images are opened when they are asked for.

    Args:
        name: one of :data:`DATASETS`.
        root: folder that holds the data sets' folders; None is $FEDPGP_DATA, else
            ~/.cache/fedpgp/data.
        download: fetch what is missing, where the data set's terms allow it.
        on_bad_image: ``error`` when a broken image is met, or ``skip``: all images are decoded
            once, broken ones are left out and counted in ``notes``.
        evaluate_on: what stands as the test split: ``test``, or ``validation`` images; then
            no test image is opened.
        options: the data set's own (``domains`` of ``emoji``, for example).

    Raises:
        FedPGPError: unknown name or option; missing, truncated or unreadable data.
    """
    if name not in DATASETS:
        raise FedPGPError(unknown("data set", name, sorted(DATASETS)))
    DatasetSection.check(on_bad_image=on_bad_image, evaluate_on=evaluate_on)
    loader = DATASETS[name]
    valid = [
        p.name for p in inspect.signature(loader).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    for option in options:
        if option not in valid:
            raise FedPGPError(
                unknown(
                    f"option of data set {name}", option, [*valid, "on_bad_image", "evaluate_on"]
                )
            )
    dataset = loader(data_root(root), download=download, **options)
    if evaluate_on == "validation":
        dataset = validation_as_test(dataset)
    return without_broken(dataset) if on_bad_image == "skip" else dataset


def validation_as_test(dataset: Dataset) -> Dataset:
    """The data set with validation images in the place of its test split, for choosing settings.

    They are its validation split; where it has none, :data:`VALIDATION_FRACTION` of the training
    images, which are then no training images: those the split reserves, else as many of each class
    (and domain), whatever a run's seed.

    Raises:
        FedPGPError: neither validation nor training images.
    """
    if dataset.val is not None:
        return replace(dataset, val=None, test=dataset.val)
    if dataset.train is None:
        raise FedPGPError(
            f"data set {dataset.name} has neither validation nor training images: "
            "dataset.evaluate_on=validation has nothing to measure on; use test"
        )
    chosen = dataset.train.reserved
    if chosen is None:
        chosen = _a_fraction_of_each(dataset.train, VALIDATION_FRACTION)
    train, kept = (
        Subset(dataset.train, np.flatnonzero(~chosen)),
        Subset(dataset.train, np.flatnonzero(chosen)),
    )
    note = (
        f"accuracy is measured on {len(kept)} training images that nobody trains on, not on test "
        "images"
    )
    return replace(dataset, train=train, test=kept, notes=(*dataset.notes, note))


def _a_fraction_of_each(split: Split, fraction: float) -> np.ndarray:
    """(N,) bool: a fraction of the images of each class and domain, to the nearest; one at
    least of two or more."""
    domains = np.zeros(len(split), dtype=np.int64)
    if split.domains is not None:
        domains = np.unique(split.domains, return_inverse=True)[1]
    chosen = np.zeros(len(split), dtype=bool)
    for label, domain in np.unique(np.stack([split.labels, domains]), axis=1).T.tolist():
        rows = np.flatnonzero((split.labels == label) & (domains == domain))
        number = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen[generator(0, "validation", label, domain).permutation(rows)[:number]] = True
    return chosen


def without_broken(dataset: Dataset) -> Dataset:
    """The data set without images that cannot be read; how many and which is noted.

    Raises:
        FedPGPError: no image that can be read is left for training, or none for testing.
    """
    kept, broken = {}, []
    for part in ("train", "val", "test"):
        split = getattr(dataset, part)
        rows = [] if split is None else _broken_rows(split)
        broken += [split.describe(row) for row in rows]
        kept[part] = Subset(split, np.setdiff1d(np.arange(len(split)), rows)) if rows else split
        if rows and len(rows) == len(split):
            if part != "val":
                raise FedPGPError(
                    f"data set {dataset.name}: none of the {len(rows)} {part} images can be read "
                    f"({split.describe(rows[0])} …); restore them"
                )
            kept[part] = None
    if not broken:
        return dataset
    listed = ", ".join(broken[:5]) + (" …" if len(broken) > 5 else "")
    note = f"{len(broken)} broken image{'s' * (len(broken) > 1)} left out: {listed}"
    return replace(dataset, **kept, notes=(*dataset.notes, note))


def _broken_rows(split: Split) -> list[int]:
    """Rows that cannot be read. Kept on disk, because every process of a run asks; those
    that the system would not open are tried again each time: it may be a right or a disk,
    which changes no file."""
    path = cache_folder() / f"unreadable-{split.fingerprint[:32]}.json"
    broken, to_try, known = [], list(range(len(split))), False
    try:
        content = json.loads(path.read_text())
        broken, to_try, known = content["broken"], content["retry"], True
    except FileNotFoundError:
        pass
    except (OSError, *MALFORMED):
        log.warning("%s is damaged and made anew", path)

    def failure(row: int) -> BaseException | None:
        try:
            split.image(row)
        except FedPGPError as error:
            return error.__cause__
        return None

    with ThreadPoolExecutor() as pool:  # decoders release the interpreter's lock
        failed = {
            row: error
            for row, error in zip(to_try, pool.map(failure, to_try), strict=True)
            if error
        }
    if not known:
        retry = [row for row, error in failed.items() if getattr(error, "errno", None) is not None]
        broken = sorted(set(failed) - set(retry))
        try:
            write_cache(path, json.dumps({"broken": broken, "retry": retry}).encode())
        except FedPGPError as error:  # it only saves the next process the look
            log.warning("which images are broken is looked up anew by every process: %s", error)
    return sorted({*broken, *failed})
