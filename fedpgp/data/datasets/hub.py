"""``hub``: any image data set of the Hugging Face hub, or a local copy of one, by its name and
columns. Needs ``datasets``."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedpgp.data.base import Dataset, Split, Subset, register
from fedpgp.data.class_names import as_names, check_names, check_template, nfc
from fedpgp.data.datasets.domains import TEST_FRACTION
from fedpgp.data.files import hold_out
from fedpgp.data.images import Reading, as_rgb, read_image
from fedpgp.digests import digest
from fedpgp.errors import FedPGPError, unknown

SAVED = ("dataset_dict.json", "state.json")
"""Files that tell a folder written by ``save_to_disk``: of several splits, of one."""


class HubSplit(Split):
    """Images in a column of a ``datasets.Dataset``."""

    def __init__(
        self,
        table: Any,
        column: str,
        name: str,
        labels: Sequence[int] | np.ndarray,
        domains: Sequence[str] | None,
        reading: Reading,
    ):
        super().__init__(labels, domains)
        import datasets

        self.feature = table.features[column]
        undecoded = datasets.Image(decode=False)
        self.table = table.select_columns([column]).cast_column(column, undecoded)
        self.column, self.name, self.reading = column, name, reading
        self._fingerprint = f"{table._fingerprint} {reading.fingerprint}"

    def describe(self, i: int) -> str:
        return f"{i} of {self.name}"

    @cached_property
    def fingerprint(self) -> str:
        return digest(self._fingerprint)

    @cached_property
    def signature(self) -> str:
        """Of names and sizes of the images: the library's own fingerprint is another one
        for a copy of a folder."""
        import pyarrow.compute as arrow

        column = self.table.data.column(self.column)
        content, paths = (arrow.struct_field(column, name) for name in ("bytes", "path"))
        if len(column) != len(self.table):  # some rows of a larger table
            return self.fingerprint
        digest = hashlib.sha256()
        for size, path in zip(
            arrow.binary_length(content).to_pylist(), paths.to_pylist(), strict=True
        ):
            if size is None and path is not None:
                with contextlib.suppress(OSError):  # inside an archive, or at an address
                    size = os.stat(path).st_size
            digest.update(os.fsencode(f"{os.path.basename(path or '')}\0{size}\n"))
        return digest.hexdigest()

    def _open(self, i: int) -> Image.Image:
        entry = self.table[int(i)][self.column]
        if entry is None:
            raise ValueError("the table has no image in this row")
        content, path = entry["bytes"], entry["path"]
        if content is None and path is not None and not Path(path).is_file():
            return as_rgb(
                self.feature.decode_example(entry), self.reading
            )  # inside an archive, or at an address
        return read_image(Path(path) if content is None else content, self.reading)


@register("hub")
def load(
    root: Path,
    *,
    download: bool = False,
    repo: str = "",
    subset: str | None = None,
    revision: str | None = None,
    image: str = "image",
    label: str = "label",
    domain: str | None = None,
    train: str | None = "train",
    val: str | None = None,
    test: str | None = "test",
    class_names: Sequence[str] | None = None,
    template: str = "a photo of a {}.",
    background: str = "white",
    grey_range: Sequence[float] | None = None,
) -> Dataset:
    """An image data set of the hub.

    Args:
        root: where a folder named ``repo`` is looked for before the hub is asked: data files, or
            what ``save_to_disk`` wrote.
        download: fetch what the hub's own cache ($HF_HOME) lacks; without it nothing
            is asked of the network.
        repo: OWNER/NAME on the hub, or a folder.
        subset: the configuration, where a data set has several.
        revision: commit or tag.
        image, label, domain: columns; ``domain`` None: the data set has no domains.
        train, val, test: names of its splits. None: it has no such split; without ``test`` a fifth
            of each class and domain of ``train`` is for testing.
        class_names: in label order; None: as the column has them, sorted where it holds words.
        template: of a class's sentence, with one ``{}``.
        background, grey_range: how images are read (:class:`fedpgp.data.images.Reading`).

    Raises:
        FedPGPError: not there; unknown split or column; a column of another kind; images without a
            label.
    """
    if not repo:
        raise FedPGPError(
            "data set hub needs dataset.repo=OWNER/NAME, its name on the Hugging Face hub"
        )
    check_template(template)
    if train is None and test is None:
        raise FedPGPError("data set hub needs dataset.train or dataset.test")
    reading = Reading.of({"background": background, "grey_range": grey_range})
    tables = _tables(root, repo, subset, revision, download)
    chosen = {
        part: name
        for part, name in (("train", train), ("val", val), ("test", test))
        if name is not None
    }
    for part, name in chosen.items():
        if name not in tables:
            without = (
                "; dataset.test=null makes one of a fifth of the training images"
                if part == "test"
                else ""
            )
            raise FedPGPError(unknown(f"dataset.{part} of {repo}", name, list(tables)) + without)
    tables = {part: tables[name] for part, name in chosen.items()}
    for table in tables.values():
        _check(repo, table, image, label, domain)
    names = _class_names(repo, tables, label, class_names)

    def split(part: str) -> HubSplit | None:
        if part not in tables:
            return None
        table = tables[part]
        where = f"{repo}, {chosen[part]}"
        domains = None if domain is None else _domains(where, table, domain)
        return HubSplit(table, image, where, _labels(where, table, label, names), domains, reading)

    parts = {part: split(part) for part in ("train", "val", "test")}
    notes = (f"from the hub: {repo}, splits {', '.join(chosen.values())}",)
    if test is None:
        whole = parts["train"]
        keys = zip(whole.domains or [""] * len(whole), whole.labels, strict=True)
        files = [(where, str(mine), str(row)) for row, (where, mine) in enumerate(keys)]
        held = hold_out(files, TEST_FRACTION, 0)
        parts["train"] = Subset(whole, [row for row, file in enumerate(files) if file not in held])
        parts["test"] = Subset(whole, [row for row, file in enumerate(files) if file in held])
        notes += (f"split: our own, {TEST_FRACTION:.0%} of each class and domain for testing",)
    return Dataset("hub", names, template, parts["train"], parts["val"], parts["test"], notes=notes)


def _tables(
    root: Path, repo: str, subset: str | None, revision: str | None, download: bool
) -> dict[str, Any]:
    """All splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise FedPGPError(
            "data set hub needs the package datasets: pip install 'fedpgp[hub]'"
        ) from error
    folder = root / repo
    local = folder.is_dir()
    saved = any((folder / name).is_file() for name in SAVED)
    if saved and (subset or revision):
        raise FedPGPError(
            f"data set hub: {folder} was written by save_to_disk; leave out dataset.subset and "
            "revision"
        )
    try:
        if saved:
            found = datasets.load_from_disk(str(folder))
            return (
                found
                if isinstance(found, datasets.DatasetDict)
                else {str(found.split or "train"): found}
            )
        with contextlib.nullcontext() if download or local else _offline(datasets.config):
            return datasets.load_dataset(str(folder) if local else repo, subset, revision=revision)
    except (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        datasets.exceptions.DatasetsError,
    ) as error:
        how = (
            "is the name right, and does this machine reach the hub (HF_HUB_OFFLINE, HF_TOKEN "
            "for a closed one)?"
            if download
            else "it is not in the hub's cache: set dataset.download=true, or fill $HF_HOME "
            "where there is a network"
        )
        raise FedPGPError(
            f"data set hub: {repo} cannot be loaded from {folder} or "
            f"https://huggingface.co/datasets/{repo} (its page says how large it is): {how} "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


@contextlib.contextmanager
def _offline(config: Any) -> Iterator[None]:
    """The hub's cache only; the library has no argument for it."""
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _check(repo: str, table: Any, image: str, label: str, domain: str | None) -> None:
    import datasets

    for option, column in (("image", image), ("label", label), ("domain", domain)):
        if column is not None and column not in table.column_names:
            raise FedPGPError(unknown(f"dataset.{option} of {repo}", column, table.column_names))
    for option, column in (("label", label), ("domain", domain)):
        kind = None if column is None else table.features[column]
        if kind is not None and not isinstance(kind, datasets.ClassLabel | datasets.Value):
            raise FedPGPError(
                f"dataset.{option}={column}: this column of {repo} holds {kind}; it needs one "
                "number or word for each image"
            )
    if not isinstance(table.features[image], datasets.Image):
        raise FedPGPError(
            f"dataset.image={image}: this column of {repo} holds {table.features[image]}, no images"
        )


def _domains(where: str, table: Any, column: str) -> list[str]:
    """The domain of each image; numbers that have names come as these."""
    names = getattr(table.features[column], "names", None)
    values = [
        None if v is None or (names and v < 0) else names[v] if names else v for v in table[column]
    ]
    lacking = values.count(None)
    if lacking:
        raise FedPGPError(
            f"data set hub: {lacking} images of {where} have no domain (dataset.domain={column})"
        )
    return [nfc(str(value)) for value in values]


def _class_names(
    repo: str, tables: dict[str, Any], label: str, given: Sequence[str] | None
) -> list[str]:
    feature = next(iter(tables.values())).features[label]
    published = getattr(feature, "names", None)
    if given is not None:
        names = as_names(given)
        if published is not None and len(published) != len(names):
            raise FedPGPError(
                f"dataset.class_names has {len(names)} names, {repo} has {len(published)} classes"
            )
        return names
    if published is None:
        values = {value for table in tables.values() for value in table[label] if value is not None}
        if not all(isinstance(value, str) for value in values):
            raise FedPGPError(
                f"dataset.label={label}: {repo} has numbers without names there; set "
                "dataset.class_names"
            )
        published = sorted({nfc(value) for value in values})
    names = [nfc(name) for name in published]
    check_names(names)
    return names


def _is_label(value: object, classes: int) -> bool:
    return isinstance(value, int | float) and 0 <= value < classes and value == int(value)


def _labels(where: str, table: Any, label: str, names: list[str]) -> np.ndarray:
    number = {name: i for i, name in enumerate(names)}
    # Numbers stay as they are, with or without names of their own; words are looked up.
    values = [
        number.get(nfc(value), -1) if isinstance(value, str) else value for value in table[label]
    ]
    bad = [value for value in values if not _is_label(value, len(names))]
    if bad:
        raise FedPGPError(
            f"data set hub: {len(bad)} images of {where} have no label among {len(names)} classes"
        )
    return np.array(values, dtype=np.int64)
