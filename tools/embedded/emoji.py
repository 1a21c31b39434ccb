"""Which emoji there are, what they are called, and how a set's image names are matched to
them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.embedded import sources as src


@dataclass(frozen=True)
class Emoji:
    """One emoji, no skin tone, gender variant or direction. `codepoints`: lower-case hex
    joined by '-', no FE0F."""

    codepoints: str
    name: str
    subgroup: str
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """The characters themselves."""
        return "".join(chr(int(point, 16)) for point in self.codepoints.split("-"))


def key(codepoints: str) -> str:
    """Code points as this project writes them: lower case, no variation selector 16."""
    return "-".join(point for point in re.split(r"[-_ ]", codepoints.lower()) if point != "fe0f")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("&", "and"))


def _is_variant(entry: dict) -> bool:
    """Gendered sequences (a neutral one stands for all three), 'facing right', flags of
    countries and regions."""
    points = key(entry["hexcode"]).split("-")
    gendered = "200d" in points and ("gender" in entry or points[0] in ("1f468", "1f469"))
    return gendered or "facing right" in entry["label"].lower()


def load_emoji(work: Path) -> dict[str, Emoji]:
    """All emoji that may be used, by code points, in Unicode's order."""
    package = src.load_sources()["emojibase-data"]
    subgroups = src.read_json(package, work, "meta/groups.json")["subgroups"]
    found = {}
    for entry in sorted(
        src.read_json(package, work, "en/data.json"), key=lambda entry: entry.get("order", 10**6)
    ):
        subgroup = subgroups.get(str(entry.get("subgroup")))
        if subgroup in (
            None,
            "country-flag",
            "subdivision-flag",
            "skin-tone",
            "hair-style",
        ) or _is_variant(entry):
            continue
        codepoints = key(entry["hexcode"])
        found[codepoints] = Emoji(
            codepoints, entry["label"], subgroup, tuple(entry.get("tags", ()))
        )
    return found


def load_names(work: Path, emoji: dict[str, Emoji]) -> dict[str, str]:
    """Slug of a name → code points, from every naming that is about; the first naming
    wins where two disagree."""
    sources = src.load_sources()
    base = sources["emojibase-data"]
    names: dict[str, str] = {}

    def add(name: str, codepoints: str) -> None:
        codepoints = key(codepoints)
        if codepoints in emoji:
            names.setdefault(_slug(name), codepoints)

    for item in emoji.values():
        add(item.name, item.codepoints)
    for package in (
        "noto",
        "twemoji",
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
        "openmoji",
    ):
        entry = sources[f"@iconify-json/{package}"]
        by_name: dict[str, list[str]] = {}
        for codepoints, name in sorted(src.read_json(entry, work, "chars.json").items()):
            by_name.setdefault(name, []).append(codepoints)
            add(name, codepoints)
        for alias, target in sorted(
            src.read_json(entry, work, "icons.json").get("aliases", {}).items()
        ):
            if not set(target) - {"parent", "hidden"}:
                for codepoints in by_name.get(target["parent"], ()):
                    add(alias, codepoints)
    for codepoints, name in sorted(src.read_json(base, work, "meta/unicode-names.json").items()):
        add(name, codepoints)
    for naming in ("cldr", "joypixels", "emojibase", "iamcal", "github"):
        for codepoints, short in sorted(
            src.read_json(base, work, f"en/shortcodes/{naming}.json").items()
        ):
            for name in [short] if isinstance(short, str) else short:
                add(name, codepoints)
    return names


def match_name(name: str, names: dict[str, str]) -> str | None:
    """Code points of the emoji that an image's name means ("clapping-hands-2",
    "faceNeutral"), or None."""
    for candidate in (
        name,
        re.sub(r"-\d+$", "", name),
        re.sub(r"-face$", "", name),
        name + "-face",
    ):
        if _slug(candidate) in names:
            return names[_slug(candidate)]
    return None


def iconify_images(
    package: str, work: Path, emoji: dict[str, Emoji], names: dict[str, str] | None = None
) -> dict[str, str]:
    """Code points → icon name for one iconify set: by its own `chars.json`, and for the rest
    (with `names`) by name."""
    entry = src.load_sources()[package]
    icons = src.read_json(entry, work, "icons.json")
    images: dict[str, str] = {}
    for codepoints, name in sorted(src.read_json(entry, work, "chars.json").items()):
        if key(codepoints) in emoji:
            images.setdefault(key(codepoints), name)
    if names is not None:
        taken = set(images.values())
        for name in sorted(icons["icons"]):
            codepoints = None if name in taken else names.get(_slug(name))
            if codepoints is not None:
                images.setdefault(codepoints, name)
    return {codepoints: images[codepoints] for codepoints in emoji if codepoints in images}


def words(names: Iterable[str]) -> list[str]:
    """The distinct lower-case words of some names, in order."""
    seen: dict[str, None] = {}
    for name in names:
        for word in re.findall(r"[a-z]{2,}", name.lower()):
            seen.setdefault(word)
    return list(seen)
