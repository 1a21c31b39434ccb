"""``folder``: anybody's own images, in folders named after their class; of one site or of several
(:mod:`fedpgp.data.layouts`)."""

from collections.abc import Sequence
from pathlib import Path

from fedpgp.data.base import Dataset, FileSplit, register
from fedpgp.data.class_names import as_names, check_names, check_template, nfc, spoken
from fedpgp.data.files import hold_out
from fedpgp.data.images import Reading
from fedpgp.data.layouts import FoundImage, NoImages, lacking, read_layout
from fedpgp.errors import FedPGPError, check_number, unknown
from fedpgp.plain_text import written_out

UNKNOWN_CLASSES = ("error", "skip")
"""Values of ``dataset.unknown_classes``."""


@register("folder")
def load(
    root: Path,
    *,
    download: bool = False,
    layout: str | None = None,
    class_names: Sequence[str] | None = None,
    unknown_classes: str = "error",
    template: str = "a photo of a {}.",
    test_share: float = 0.3,
    split_seed: int = 0,
    site_in_split: bool = False,
    background: str = "white",
    grey_range: Sequence[float] | None = None,
) -> Dataset:
    """Images in folders named after their class. Of several sites, each is a domain.

    Args:
        root: the folder that holds the classes, or ``train`` and ``test`` (and ``val``), or the
            sites, each with one of these.
        download: not used.
        layout: one of :data:`fedpgp.data.layouts.LAYOUTS`, where it could be taken for
            another; None finds out.
        class_names: in label order, where that must not hang on what this folder has (each site of
            a deployment has its own); None is the sorted names of the class folders.
        unknown_classes: class folders that ``class_names`` lacks: one of :data:`UNKNOWN_CLASSES`.
        template: of a class's sentence, with one ``{}``.
        test_share: where a site has no ``train`` and ``test``: the part of each class's
            files that is for testing.
        split_seed: of that split. It hangs on the names of class and file alone: a new file moves
            at most one other from train to test, and a site may be moved or renamed.
        site_in_split: the split hangs on the site's name too, as in runs made before
            ``layout`` was an option.
        background, grey_range: how images are read (:class:`fedpgp.data.images.Reading`).

    Raises:
        FedPGPError: no known layout, or one that could be two; a class folder that ``class_names``
            lacks; names that no prompt tells apart; a fraction or template that cannot be.
    """
    shown = written_out(root)
    if not root.is_dir():
        raise FedPGPError(
            f"data set folder: {shown} is no folder; set dataset.root to one that holds your images"
        )
    check_template(template)
    check_number("dataset.test_share", test_share, above=0, below=1)
    check_number("dataset.split_seed", split_seed, most=2**128, whole=True)
    if unknown_classes not in UNKNOWN_CLASSES:
        raise FedPGPError(unknown("dataset.unknown_classes", unknown_classes, UNKNOWN_CLASSES))
    reading = Reading.of({"background": background, "grey_range": grey_range})
    found, notes = read_layout(root, layout)
    classes = sorted({nfc(image.folder) for image in found})
    check_names(classes)
    names = classes if class_names is None else as_names(class_names)
    strangers = [name for name in classes if name not in names]
    if strangers and unknown_classes == "skip":
        listed = ", ".join(strangers)
        notes += (written_out(f"not read: classes that dataset.class_names lacks: {listed}"),)
        classes = [name for name in classes if name in names]
        found = [image for image in found if nfc(image.folder) in names]
        if not found:
            raise NoImages(f"data set folder: no images in {shown} of dataset.class_names")
    elif strangers:
        written = {spoken(name): name for name in names}
        near = [
            f"{name} ({written[spoken(name)]} there)"
            for name in strangers
            if spoken(name) in written
        ]
        raise FedPGPError(
            f"data set folder: {shown} has folders that dataset.class_names lacks: "
            f"{', '.join(near or strangers)}; a name that YAML takes for a number or a word of "
            "its own needs quotes: '007', 'no'"
        )
    label = {name: i for i, name in enumerate(names)}
    parts = _parts(found, test_share, split_seed, site_in_split)

    def split(part: str) -> FileSplit:
        mine = [image for image, its_part in zip(found, parts, strict=True) if its_part == part]
        domains = None if found[0].site is None else [nfc(image.site) for image in mine]
        paths, labels = [image.path for image in mine], [label[nfc(image.folder)] for image in mine]
        return FileSplit(root, paths, labels, domains, reading)

    notes += lacking(
        ((part, nfc(image.folder)) for image, part in zip(found, parts, strict=True)), classes
    )
    val = split("val") if "val" in parts else None
    return Dataset("folder", names, template, split("train"), val, split("test"), notes=notes)


def _parts(
    found: Sequence[FoundImage], fraction: float, seed: int, site_in_split: bool
) -> list[str]:
    """train, val or test of each image: as its folders say, else by the file's name."""

    def key(image: FoundImage) -> tuple[str, str, str]:
        file = image.path.rsplit("/", 1)[1]
        return (
            (image.site, image.folder, file)
            if site_in_split
            else ("", nfc(image.folder), nfc(file))
        )

    keys: dict[str | None, list[tuple[str, str, str]]] = {}
    for image in found:
        if image.part is None:
            keys.setdefault(image.site, []).append(key(image))
    held = {site: hold_out(mine, fraction, seed) for site, mine in keys.items()}
    return [p.part or ("test" if key(p) in held[p.site] else "train") for p in found]
