"""What readers of data sets with domains share. Images are (path, label, domain); class
orders come from fixed lists or sorted names only, never from a set, whose order changes
from process to process."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedpgp.data.base import Dataset, FileSplit
from fedpgp.data.files import hold_out, image_files, unpickle
from fedpgp.errors import FedPGPError, unknown

TEMPLATE = "a photo of a {}."
TEST_FRACTION = 0.2
"""Of each class and domain, where a data set has no split of its own."""

Row = tuple[str, int, str]


def choose(name: str, domains: str | Sequence[str] | None, valid: Sequence[str]) -> list[str]:
    """The domains asked for, in the data set's order; None is all.

    Raises:
        FedPGPError: unknown, or none.
    """
    asked = (
        list(valid) if domains is None else [domains] if isinstance(domains, str) else list(domains)
    )
    for domain in asked:
        if domain not in valid:
            raise FedPGPError(unknown(f"domain of {name}", domain, valid))
    if not asked:
        raise FedPGPError(f"dataset.domains of {name} is empty; choose some of {', '.join(valid)}")
    return [domain for domain in valid if domain in asked]


def build(
    name: str,
    class_names: Sequence[str],
    folder: Path,
    train: Sequence[Row],
    val: Sequence[Row] | None,
    test: Sequence[Row],
    note: str,
    template: str = TEMPLATE,
) -> Dataset:
    """The data set of these images, whose paths start at ``folder``.

    Raises:
        FedPGPError: nothing to train on, or nothing to test.
    """
    for part, rows in (("train", train), ("test", test)):
        if not rows:
            raise FedPGPError(
                f"data set {name}: its {part} split in {folder} has no images; fetch it again"
            )

    def split(rows: Sequence[Row] | None) -> FileSplit | None:
        return (
            FileSplit(folder, *(list(column) for column in zip(*rows, strict=True)))
            if rows
            else None
        )

    return Dataset(
        name, list(class_names), template, split(train), split(val), split(test), notes=(note,)
    )


def from_folders(
    name: str, folder: Path, domains: Mapping[str, str], class_names: Sequence[str]
) -> Dataset:
    """``DOMAIN/CLASS/image``, split by the files' names: :data:`TEST_FRACTION` of each class
    and domain is for testing.

    Args:
        name: of the data set.
        folder: holds the domains' folders.
        domains: domain -> its folder.
        class_names: in label order. Other folders are left out.
    """
    files = [
        (domain, class_name, file)
        for domain, where in domains.items()
        for class_name in class_names
        if (folder / where / class_name).is_dir()
        for file in image_files(folder / where / class_name)
    ]
    test = hold_out(files, TEST_FRACTION, 0)
    label = {class_name: i for i, class_name in enumerate(class_names)}
    rows = {
        file: (f"{domains[file[0]]}/{file[1]}/{file[2]}", label[file[1]], file[0]) for file in files
    }
    note = (
        f"split: our own, {TEST_FRACTION:.0%} of each class and domain for testing (no lists of "
        "a published one there)"
    )
    return build(
        name,
        class_names,
        folder,
        [rows[file] for file in files if file not in test],
        None,
        [rows[file] for file in files if file in test],
        note,
    )


def fedbn_lists(folder: Path, domains: Sequence[str]) -> bool:
    """Whether FedBN's ``DOMAIN_train.pkl`` and ``DOMAIN_test.pkl`` are there."""
    return all(
        (folder / f"{domain}_{part}.pkl").exists()
        for domain in domains
        for part in ("train", "test")
    )


def from_fedbn(
    name: str, folder: Path, domains: Sequence[str], class_names: Sequence[str]
) -> Dataset:
    """FedBN's pickles (Li et al. 2021): each a pair of arrays, paths and class names.

    Only the end ``DOMAIN/CLASS/FILE`` of a path counts, so the folder may have any name.

    Raises:
        FedPGPError: damaged, or holding code or another class.
    """
    label = {class_name: i for i, class_name in enumerate(class_names)}

    def rows(part: str) -> list[Row]:
        rows = []
        for domain in domains:
            path = folder / f"{domain}_{part}.pkl"
            content = unpickle(path)
            try:
                paths, texts = (np.asarray(column).ravel().tolist() for column in content)
                ends = [str(file).replace("\\", "/").split("/")[-3:] for file in paths]
                rows += [
                    ("/".join(end), label[text], domain)
                    for end, text in zip(ends, texts, strict=True)
                ]
            except (KeyError, TypeError, ValueError) as error:
                raise FedPGPError(
                    f"{path} is no pair of paths and names of {name}'s classes ({error!r}); "
                    "fetch it again"
                ) from error
        return rows

    return build(
        name, class_names, folder, rows("train"), None, rows("test"), "split: FedBN's pickles"
    )
