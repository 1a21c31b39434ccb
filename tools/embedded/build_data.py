"""Builds the embedded federation's images, `fedpgp/assets/emoji/`, from pinned packages;
the same bytes every time.

    python -m tools.embedded.build_data            # writes fedpgp/assets/emoji
    python -m tools.embedded.build_data --check    # builds elsewhere and compares

The domain is the vendor, the class one or more Unicode subgroups. An emoji is used when every
vendor's image of it can be rendered or is absent; it is train or test in all domains alike. Needs
node, npm and Linux on x86-64 (the pinned renderer).
"""

import argparse
import csv
import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, features

from tools.embedded import sources as src
from tools.embedded.emoji import Emoji, iconify_images, load_emoji, load_names

ASSETS = src.HERE.parents[1] / "fedpgp" / "assets" / "emoji"
DOMAINS = {  # domain → package
    "noto": "@iconify-json/noto",
    "twemoji": "@iconify-json/twemoji",
    "fluent": "@iconify-json/fluent-emoji",
    "fluent_flat": "@iconify-json/fluent-emoji-flat",
    "high_contrast": "@iconify-json/fluent-emoji-high-contrast",
    "openmoji": "@iconify-json/openmoji",
}
# Label order. Protocols take the first half as base and the second half as novel classes, so each
# half has its animals, plants, food, faces, people, vehicles, things and signs. Left out of
# Unicode's larger subgroups: religion, game, household and person-fantasy, whose members have
# little in common that can be seen.
CLASSES: list[tuple[str, tuple[str, ...]]] = [
    ("mammal", ("animal-mammal",)),
    ("insect", ("animal-bug",)),
    ("plant", ("plant-other",)),
    ("fruit", ("food-fruit",)),
    ("meal", ("food-prepared",)),
    ("drink", ("drink",)),
    ("smiling face", ("face-smiling",)),
    ("worried face", ("face-concerned",)),
    ("worker", ("person-role",)),
    (
        "hand gesture",
        (
            "hand-fingers-open",
            "hand-fingers-partial",
            "hand-single-finger",
            "hand-fingers-closed",
            "hands",
            "hand-prop",
        ),
    ),
    ("land vehicle", ("transport-ground",)),
    ("building", ("place-building",)),
    ("clock", ("time",)),
    ("clothing", ("clothing",)),
    ("tool", ("tool",)),
    ("office supply", ("office",)),
    ("computer", ("computer",)),
    ("mail", ("mail",)),
    ("celebration", ("event",)),
    ("letter sign", ("alphanum",)),
    ("geometric shape", ("geometric",)),
    ("media button", ("av-symbol",)),
    ("prohibition sign", ("warning",)),
    ("bird", ("animal-bird",)),
    ("sea animal", ("animal-marine",)),
    ("flower", ("plant-flower",)),
    ("vegetable", ("food-vegetable",)),
    ("Asian food", ("food-asian",)),
    ("dessert", ("food-sweet",)),
    ("neutral face", ("face-neutral-skeptical",)),
    ("sick face", ("face-unwell",)),
    ("athlete", ("person-sport",)),
    ("person", ("person",)),
    ("body part", ("body-parts",)),
    ("aircraft", ("transport-air",)),
    ("weather", ("sky-weather",)),
    ("zodiac sign", ("zodiac",)),
    ("music", ("music", "musical-instrument", "sound")),
    ("sports equipment", ("sport",)),
    ("book", ("book-paper",)),
    ("camera or lamp", ("light-video",)),
    ("science", ("science", "medical")),
    ("keycap", ("keycap",)),
    ("arrow", ("arrow",)),
    ("heart", ("heart",)),
    ("public sign", ("transport-sign",)),
]
SPLIT_SEED = "fedpgp-emoji-1"
TRAIN_FRACTION = 0.7
LICENCE_FILES = {
    "Apache-2.0": "Apache-2.0",
    "CC-BY-4.0": "CC-BY-4.0",
    "CC-BY-SA-4.0": "CC-BY-SA-4.0",
    "MIT": "MIT-fluent-emoji",
}
NAMES_LICENCE = "MIT-emojibase-data"


def render_domains(emoji: dict[str, Emoji], work: Path) -> dict[str, dict[str, np.ndarray]]:
    """Domain → code points → (64, 64, 3) uint8, without what fails in any domain and without
    copies inside a domain."""
    sources = src.load_sources()
    names = load_names(work, emoji)
    rendered: dict[str, dict[str, np.ndarray]] = {}
    failed: set[str] = set()
    for domain, package in DOMAINS.items():
        icons = src.read_json(sources[package], work, "icons.json")
        # fluent has no table of code points; the others have, and their other images are no emoji
        image_names = iconify_images(package, work, emoji, names if domain == "fluent" else None)
        documents = {
            codepoints: src.icon_svg(icons, name) for codepoints, name in image_names.items()
        }
        usable = [codepoints for codepoints, svg in documents.items() if svg is not None]
        images = src.render([documents[codepoints] for codepoints in usable], work, sources)
        rendered[domain] = {}
        seen: set[bytes] = set()
        for codepoints, image in zip(usable, images, strict=True):
            if image is None:
                print(
                    f"left out everywhere: {emoji[codepoints].name} ({codepoints}) cannot be "
                    f"rendered in {domain}"
                )
                failed.add(codepoints)
            elif image.min() == 255:
                print(f"left out of {domain}: {emoji[codepoints].name} is blank")
            elif image.tobytes() in seen:
                print(
                    f"left out of {domain}: {emoji[codepoints].name} is the same image as "
                    "another emoji"
                )
            else:
                seen.add(image.tobytes())
                rendered[domain][codepoints] = image
    return {
        domain: {c: i for c, i in images.items() if c not in failed}
        for domain, images in rendered.items()
    }


def split_emoji(members: list[str]) -> dict[str, str]:
    """Code points of one class → "train" or "test", decided by a hash, so that it hangs on
    nothing but the emoji."""
    ordered = sorted(
        members,
        key=lambda codepoints: hashlib.sha256(f"{SPLIT_SEED}:{codepoints}".encode()).digest(),
    )
    train = set(ordered[: round(TRAIN_FRACTION * len(ordered))])
    return {codepoints: "train" if codepoints in train else "test" for codepoints in members}


def _write_zip(path: Path, images: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for codepoints in sorted(images):
            buffer = io.BytesIO()
            Image.fromarray(images[codepoints]).save(
                buffer, "WEBP", lossless=True, quality=80, method=4, exact=True
            )
            info = zipfile.ZipInfo(f"{codepoints}.webp", date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, buffer.getvalue())


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _licence_text(licence: str, work: Path) -> str:
    package = src.load_sources()["spdx-license-list"]
    text = src.read_json(package, work, f"licenses/{licence}.json")["licenseText"]
    if licence == "MIT":
        text = text.replace("<year> <copyright holders>", "Microsoft Corporation.")
        if "Microsoft" not in text:
            raise src.SourceError("the MIT licence text has no place for its copyright holder")
    return text.rstrip() + "\n"


def _attribution(counts: dict[str, int]) -> str:
    sources = src.load_sources()
    rows = []
    for domain, package in DOMAINS.items():
        entry = sources[package]
        licence = f"[{entry['licence']}](licences/{LICENCE_FILES[entry['licence']]}.txt)"
        rows.append(
            f"| `{domain}.zip` | [{entry['title']}]({entry['url']}) | {entry['author']} | "
            f"{licence} | `{package}` {entry['version']} | {counts[domain]} |"
        )
    base = sources["emojibase-data"]
    names_licence = f"[{base['licence']}](licences/{NAMES_LICENCE}.txt)"
    return "\n".join(
        [
            "# Who made the images",
            "",
            "| file | set | made by | licence | taken from (npm) | images |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "**Changes made to all of them:** a selection (no skin tones, gender variants, "
            "directions, flags, no exact copies inside a set); rendered",
            "from SVG to 64x64 pixels on white; stored as lossless WebP, named by Unicode code "
            "points.",
            "",
            "**OpenMoji is share-alike.** `openmoji.zip` is an adaptation of OpenMoji "
            '("All emojis designed by '
            "OpenMoji – the open-source emoji and icon",
            'project. License: CC BY-SA 4.0") and is itself under CC BY-SA 4.0: pass it on, '
            "and what you make of it, "
            "under the same licence. The other",
            "archives are not share-alike; each keeps its own licence.",
            "",
            "Twemoji graphics: copyright Twitter, Inc and other contributors, CC BY 4.0. Noto "
            "Emoji: copyright Google LLC, Apache-2.0.",
            "Fluent Emoji (gradient, flat, high contrast): copyright Microsoft Corporation, MIT.",
            "Names and subgroups in `emoji.csv` and `classes.csv` follow Unicode CLDR, by way "
            f"of `emojibase-data` {base['version']} ({names_licence}, {base['author']}).",
            "",
            "Neither the vendors nor the Unicode Consortium have anything to do with this "
            "project or endorse it.",
            "",
        ]
    )


def build(target: Path, work: Path) -> None:
    """Writes everything that belongs into `target` (made anew)."""
    emoji = load_emoji(work)
    label_of = {subgroup: name for name, subgroups in CLASSES for subgroup in subgroups}
    emoji = {codepoints: item for codepoints, item in emoji.items() if item.subgroup in label_of}
    domains = render_domains(emoji, work)
    used = sorted(set().union(*domains.values()))
    split: dict[str, str] = {}
    for name, _ in CLASSES:
        split |= split_emoji(
            [codepoints for codepoints in used if label_of[emoji[codepoints].subgroup] == name]
        )

    if target.exists():
        shutil.rmtree(target)
    (target / "licences").mkdir(parents=True)
    for domain, images in domains.items():
        _write_zip(target / f"{domain}.zip", images)
    rows = [[c, emoji[c].name, label_of[emoji[c].subgroup], split[c]] for c in used]
    _write_csv(target / "emoji.csv", ["codepoints", "name", "class", "split"], rows)
    rows = [[index, name, " ".join(subgroups)] for index, (name, subgroups) in enumerate(CLASSES)]
    _write_csv(target / "classes.csv", ["label", "class", "subgroups"], rows)
    for licence, file in LICENCE_FILES.items():
        (target / "licences" / f"{file}.txt").write_text(
            _licence_text(licence, work), encoding="utf-8"
        )
    own = src.read(src.load_sources()["emojibase-data"], work, "LICENSE")
    if own is None:
        raise src.SourceError("emojibase-data has no LICENSE")
    (target / "licences" / f"{NAMES_LICENCE}.txt").write_bytes(own)
    counts = {domain: len(images) for domain, images in domains.items()}
    (target / "ATTRIBUTION.md").write_text(_attribution(counts), encoding="utf-8")
    sides = {
        side: sum(len([c for c in images if split[c] == side]) for images in domains.values())
        for side in ("train", "test")
    }
    print(json.dumps({"classes": len(CLASSES), "emoji": len(used), "images": counts, **sides}))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=src.DEFAULT_WORK,
        help="folder for packages (default %(default)s)",
    )
    parser.add_argument(
        "--check", action="store_true", help="build into a temporary folder and compare"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(
        f"libwebp {features.version('webp')} (another version may encode the same pixels to "
        "other bytes)"
    )
    if not arguments.check:
        build(ASSETS, arguments.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "emoji", arguments.work)
        new, old = digests(Path(folder) / "emoji"), digests(ASSETS)
    differing = sorted(path for path in new.keys() | old.keys() if new.get(path) != old.get(path))
    if differing:
        raise SystemExit("not the same: " + ", ".join(differing))
    print("the same bytes")


if __name__ == "__main__":
    main()
