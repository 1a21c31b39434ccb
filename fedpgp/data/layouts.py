"""How people lay out images in folders: what is there, which of the known layouts it is,
and what is left over."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fedpgp.data.class_names import check_text
from fedpgp.data.files import IGNORED, is_image
from fedpgp.errors import FedPGPError, unknown
from fedpgp.plain_text import written_out

LAYOUTS = ("CLASS", "SPLIT/CLASS", "SITE/CLASS", "SITE/SPLIT/CLASS")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What folders of a split are called, in lower case."""

Parts = tuple[str, ...]
"""Names of the folders from the root to one below it."""


class NoImages(FedPGPError):
    """A folder has no images where they are looked for."""


class FoundImage(NamedTuple):
    """An image's place: ``part`` is None where files, not folders, are divided into train and
    test."""

    site: str | None
    part: str | None
    folder: str
    path: str


@dataclass
class Tree:
    """What lies below a folder; hidden files and folders do not count.

    Attributes:
        images: folder -> its image files, sorted; of folders that have some.
        bare: folders without images.
        inside: folder -> names of the folders in it.
        others: ending -> other files, of which one is named.
    """

    images: dict[Parts, list[str]] = field(default_factory=dict)
    bare: list[Parts] = field(default_factory=list)
    inside: dict[Parts, list[str]] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)


def scan(root: Path) -> Tree:
    """Everything below a folder; links are followed, in a circle once.

    Raises:
        FedPGPError: a folder that cannot be listed.
    """
    tree = Tree()
    waiting: list[tuple[Parts, frozenset]] = [((), frozenset())]
    while waiting:
        parts, above = waiting.pop()
        folder = root.joinpath(*parts)
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise FedPGPError(
                f"folder {written_out(folder)} cannot be listed ({error.strerror})"
            ) from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        files = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED:
                continue
            kind = _kind(entry)
            if kind == "folder":
                waiting.append(((*parts, entry.name), above | {here}))
                tree.inside.setdefault(parts, []).append(entry.name)
            elif kind == "file" and is_image(entry.name):
                files.append(entry.name)
            else:
                ending = os.path.splitext(entry.name)[1].lower() if kind == "file" else "no file"
                tree.others.setdefault(ending, []).append("/".join((*parts, entry.name)))
        if files:
            tree.images[parts] = files
        else:
            tree.bare.append(parts)
    return tree


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file() or entry.is_symlink():  # a link to nothing is a broken image
            return "file"
    except OSError:  # a link to itself
        return "file"
    return "other"  # a pipe or a socket would be waited for without end


def read_layout(root: Path, layout: str | None) -> tuple[list[FoundImage], tuple[str, ...]]:
    """The images below a folder, and notes on all that is not used.

    Args:
        root: the folder.
        layout: one of :data:`LAYOUTS`; None finds out which it is.

    Raises:
        NoImages: there are none.
        FedPGPError: unknown layout; a layout that could be another; two folders of one split.
    """
    if layout is not None and layout not in LAYOUTS:
        raise FedPGPError(unknown("dataset.layout", layout, LAYOUTS))
    tree = scan(root)
    sites = _recognised(tree, root) if layout is None else _told(tree, layout)
    found, left = [], {}
    for parts, files in sorted(tree.images.items()):
        place, reason = _place(parts, sites)
        if place is None:
            left.setdefault(reason, []).extend("/".join((*parts, file)) for file in files)
            continue
        for name, what in ((place[0], "site"), (place[2], "class")):
            if name is not None:
                check_text(name, what)
        found += [FoundImage(*place, "/".join((*parts, file))) for file in files]
    if not found:
        elsewhere = next((f"; there are some elsewhere: {paths[0]}" for paths in left.values()), "")
        raise NoImages(
            f"data set folder: no images in {written_out(root)} where they are looked "
            f"for{written_out(elsewhere)}; it must hold {layout or ', or '.join(LAYOUTS)}, with "
            "images in each CLASS (SPLIT: train and test)"
        )
    _check_splits(tree, sites, root)
    bare = ["/".join(parts) for parts in sorted(tree.bare) if _is_class(parts, sites)]
    return found, (*_leftovers(tree.others, left), *_without("folders without images", bare))


# Which layout it is. ------------------------------------------------------------------------------


def _told(tree: Tree, layout: str) -> dict[str | None, str]:
    """Site -> its own layout, by a layout that was named. None is the root itself."""
    if not layout.startswith("SITE/"):
        return {None: layout}
    tops = {parts[0] for parts in tree.images if parts}
    return dict.fromkeys(sorted(tops), layout.removeprefix("SITE/"))


def _recognised(tree: Tree, root: Path) -> dict[str | None, str]:
    """Site -> its own layout; None is the root itself, where it is one site.

    Raises:
        FedPGPError: several layouts fit.
    """
    folders = [parts for parts in tree.images if parts]
    whole = _of_site(folders, tree.inside.get((), ()), root, "CLASS or dataset.layout=SITE/CLASS")
    if whole is not None:
        return {None: whole}
    below: dict[str, list[Parts]] = {}
    for parts in tree.images:
        if len(parts) > 1:
            below.setdefault(parts[0], []).append(parts[1:])
    found = {
        site: _of_site(below[site], tree.inside[site,], root / site, "SITE/CLASS")
        for site in sorted(below)
    }
    named_as_split = [site for site in found if site.lower() in SPLITS]
    if "SPLIT/CLASS" in (found[site] for site in named_as_split):
        raise _two_readings(
            root,
            f"folders of a split ({_some(named_as_split)}), with folders of splits in them",
            "sites of these names",
            "give the sites other names, or set dataset.layout=SITE/SPLIT/CLASS",
        )
    return {site: layout for site, layout in found.items() if layout is not None}


def _of_site(folders: list[Parts], names: Iterable[str], where: Path, by_class: str) -> str | None:
    """``CLASS`` or ``SPLIT/CLASS``, or None when it is neither.

    Args:
        folders: those that hold images, seen from the site.
        names: of all folders in the site's.
        where: the site's folder.
        by_class: the layout to name for one whose folders are classes.
    """
    direct = sorted({parts[0] for parts in folders if len(parts) == 1})
    nested = sorted({parts[0] for parts in folders if len(parts) == 2})
    if _splits(nested) and {"train", "test"} <= _splits(names):
        return "SPLIT/CLASS"
    like_splits = [name for name in nested if _like_a_split(name)]
    if like_splits:
        raise _two_readings(
            where,
            f"folders of a split ({_some(like_splits)}), of which train or test is missing or "
            "has another name",
            f"sites of these names ({_some(nested)}), whose images are for training and testing "
            "alike",
            "call the folders train and test, or set dataset.layout=SITE/CLASS",
        )
    if {"train", "test"} <= _splits(direct):
        raise _two_readings(
            where,
            f"a split whose images lie in {' and '.join(direct)} without folders of their classes",
            "classes of these names",
            "make a folder a class in each, or set dataset.layout=CLASS",
        )
    if direct and nested:
        raise _two_readings(
            where,
            f"classes ({_some(direct)}), with images in folders below that are not read "
            f"({nested[0]}/…)",
            f"folders of classes ({_some(nested)}), with images beside them that are not read "
            f"({direct[0]}/…)",
            f"move either, or set dataset.layout={by_class}",
        )
    return "CLASS" if direct else None


def _two_readings(where: Path, first: str, second: str, mend: str) -> FedPGPError:
    return FedPGPError(
        f"data set folder: {written_out(where)} can be read in two ways, as "
        f"{written_out(first)}, or as {written_out(second)}: {mend}"
    )


def _splits(names: Iterable[str]) -> set[str]:
    return {SPLITS[name.lower()] for name in names if name.lower() in SPLITS}


def _like_a_split(name: str) -> bool:
    """Whether a word of a folder's name is that of a split (``test_images``, ``TrainSet``)."""
    return any(word.lower() in SPLITS for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))


# What belongs where. ------------------------------------------------------------------------------


def _place(
    parts: Parts, sites: Mapping[str | None, str]
) -> tuple[tuple[str | None, str | None, str] | None, str]:
    """(site, part, class folder) of a folder's images, or None and where they lie instead."""
    site, inner = (None, parts) if None in sites else (parts[0] if parts else "", parts[1:])
    deep = "images in deeper folders"
    if site not in sites:
        return None, deep if len(parts) > 1 else "images beside the folders of the classes"
    classes = 1 if sites[site] == "CLASS" else 2
    if classes == 2 and inner and inner[0].lower() not in SPLITS:
        return None, "images in folders beside train and test"
    if len(inner) != classes:
        return None, deep if len(inner) > classes else "images beside the folders of the classes"
    return (site, None if classes == 1 else SPLITS[inner[0].lower()], inner[-1]), ""


def _is_class(parts: Parts, sites: Mapping[str | None, str]) -> bool:
    return bool(parts) and _place(parts, sites)[0] is not None


def _check_splits(tree: Tree, sites: Mapping[str | None, str], root: Path) -> None:
    """Refuses a site with splits that lacks train or test, or has two folders of one split
    (``val``, ``valid``)."""
    for site, layout in sites.items():
        if layout == "CLASS":
            continue
        where, names = (
            written_out(root / (site or "")),
            tree.inside.get(() if site is None else (site,), ()),
        )
        for part in ("train", "val", "test"):
            mine = sorted(name for name in names if SPLITS.get(name.lower()) == part)
            if len(mine) > 1:
                raise FedPGPError(
                    f"data set folder: {where} has {' and '.join(mine)}, two folders of one "
                    "split; keep one"
                )
            if not mine and part != "val":
                raise FedPGPError(f"data set folder: {where} has no folder {part}")


# What is left over. -------------------------------------------------------------------------------


def _leftovers(others: Mapping[str, list[str]], left: Mapping[str, list[str]]) -> tuple[str, ...]:
    notes = []
    if others:
        count = sum(map(len, others.values()))
        most = sorted(others, key=lambda ending: (-len(others[ending]), ending))
        by_ending = ", ".join(
            f"{len(others[ending])} {ending or 'without an ending'}" for ending in most[:5]
        )
        example = others[most[0]][0]
        notes.append(
            f"not read: {count} file{'s' * (count > 1)} of kinds that are no images or that "
            f"Pillow cannot read ({by_ending}{', …' if len(most) > 5 else ''}): "
            f"{example}{' …' if count > 1 else ''}"
        )
    for reason, paths in left.items():
        what = reason if len(paths) > 1 else reason.replace("images", "image", 1)
        notes.append(f"not read: {len(paths)} {what}: {paths[0]}{' …' if len(paths) > 1 else ''}")
    return tuple(map(written_out, notes))


def _without(what: str, names: list[str]) -> tuple[str, ...]:
    """A note that names some."""
    if not names:
        return ()
    return (written_out(f"{what}: {_some(names)}"),)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" … ({len(names)})" if len(names) > 10 else "")


def lacking(found: Iterable[tuple[str, str]], names: Iterable[str]) -> tuple[str, ...]:
    """Notes on classes without an image in one of the splits.

    Args:
        found: (part, class name) of the images.
        names: of the classes that have images.
    """
    there = set(found)
    return tuple(
        note
        for part, what in (
            ("train", "classes without training images"),
            ("test", "classes without test images"),
        )
        for note in _without(what, [name for name in names if (part, name) not in there])
    )
