"""``folder``: anybody's own pictures, in ``train/CLASS`` and ``test/CLASS`` (and ``val/CLASS``) or ``DOMAIN/CLASS``."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, FileSplit, register
from fedpgp.data.files import hold_out, pictures, subfolders
from fedpgp.data.pictures import Reading
from fedpgp.errors import FedPGPError

LAYOUTS = "train/CLASS/*.jpg and test/CLASS/*.jpg, or DOMAIN/CLASS/*.jpg"


@register("folder")
def load(
    root: Path,
    *,
    download: bool = False,
    class_names: Sequence[str] | None = None,
    template: str = "a photo of a {}.",
    test_share: float = 0.3,
    split_seed: int = 0,
    background: str = "white",
    grey_range: Sequence[float] | None = None,
) -> Dataset:
    """Pictures in folders named after their class.

    Args:
        root: the folder that holds ``train`` and ``test``, or the domains.
        download: not used.
        class_names: in label order, where that must not hang on what this folder has (each site of a deployment has its
            own); None is the sorted names of the class folders.
        template: of a class's sentence, with one ``{}``.
        test_share: of the layout with domains: the part of each class's files, in each domain, that is for testing.
        split_seed: of that split. It is made by file name: a new file moves at most one other from train to test.
        background, grey_range: how pictures are read (:class:`fedpgp.data.pictures.Reading`).

    Raises:
        FedPGPError: neither layout is there; a class folder that ``class_names`` lacks; a share or template that cannot
            be.
    """
    if not root.is_dir():
        raise FedPGPError(f"data set folder: {root} is no folder; set dataset.root to one that holds {LAYOUTS}")
    if template.count("{}") != 1:
        raise FedPGPError(f"dataset.template={template!r} needs exactly one {{}}, the place of the class name")
    if not 0 < test_share < 1:
        raise FedPGPError(f"dataset.test_share={test_share} must lie between 0 and 1")
    reading = Reading.of({"background": background, "grey_range": grey_range})
    top = subfolders(root)
    by_split = "train" in top
    if by_split and "test" not in top:
        raise FedPGPError(f"data set folder: {root} has train but no test; it must hold {LAYOUTS}")
    groups = [name for name in ("train", "val", "test") if name in top] if by_split else top
    files = [
        (group, name, file)
        for group in groups
        for name in subfolders(root / group)
        for file in pictures(root / group / name)
    ]
    if not files:
        raise FedPGPError(f"data set folder: no pictures in {root}; it must hold {LAYOUTS}")
    found = sorted({name for _, name, _ in files})
    names = found if class_names is None else list(class_names)
    strangers = [name for name in found if name not in names]
    if strangers:
        raise FedPGPError(f"data set folder: {root} has folders that dataset.class_names lacks: {', '.join(strangers)}")
    label = {name: i for i, name in enumerate(names)}

    def split(chosen: list[tuple[str, str, str]]) -> FileSplit:
        domains = None if by_split else [group for group, _, _ in chosen]
        paths, labels = ["/".join(parts) for parts in chosen], [label[name] for _, name, _ in chosen]
        return FileSplit(root, paths, labels, domains, reading)

    if by_split:
        parts = {part: split([f for f in files if f[0] == part]) for part in groups}
        return Dataset("folder", names, template, parts["train"], parts.get("val"), parts["test"])
    test = hold_out(files, test_share, split_seed)
    train = split([f for f in files if f not in test])
    return Dataset("folder", names, template, train, None, split([f for f in files if f in test]))
