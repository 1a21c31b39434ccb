"""The pretraining images: other art styles of emoji, and icon sets; never an image
of the federation's sets.

    python -m tools.embedded.corpus    # renders all into the work folder (pretrain.py does it too)

Images that nearly equal a federation image of the same emoji (mean absolute difference below
0.04 of the range, in any domain) are left out.
"""

import argparse
import io
import json
import re
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.embedded import sources as src
from tools.embedded.build_data import ASSETS, DOMAINS
from tools.embedded.emoji import Emoji, iconify_images, load_emoji, load_names, match_name, words

NEAR_COPY = 0.04  # mean absolute pixel difference, 1 = the full range
MIN_WORD_COUNT = 4  # a word is a training target when so many names or tag lists hold it
NOTO_EMOJI_WEIGHTS = (300, 500, 700)

# Which drawings of an icon are used, where a set has each in several (outline, filled, …):
# a pattern of its name.
ICON_FILTER = {
    "ph": r"(?!.*-(light|thin|bold)$)",
    "healthicons": r"(?!.*(negative|24px))",
    "solar": r".*-(bold|line-duotone|bold-duotone)$",
    "material-symbols": r"(?!.*-(outline|rounded|sharp))",
}
STYLE_WORDS = re.compile(
    r"-(outline|outlined|filled|fill|flat|duo|duotone|bold|line|linear|rounded|sharp|alt|alternate"
    r"|negative|variant|solid|oval|\d+)$"
)
STOP_WORDS = frozenset(
    ["off", "on", "out", "of", "the", "and", "with", "in", "for", "to", "at", "by", "or"]
    + ["alt", "outline", "fill", "filled", "bold", "flat", "line", "duo", "solid"]
)


@dataclass
class Corpus:
    """Images and what they show. `emoji` and `source` index the two lists; -1 where an
    image is no known emoji."""

    images: np.ndarray  # (N, 64, 64, 3) uint8
    names: list[str]  # N readable names: "cat with wry smile", "coffee bean"
    words: list[list[str]]  # N lists of words of the name and the tags
    emoji: np.ndarray  # (N,) int, index into `emoji_list`
    source: np.ndarray  # (N,) int, index into `source_list`
    emoji_list: list[Emoji]
    source_list: list[str]


def _font_images(data: bytes, emoji: list[Emoji]) -> dict[str, np.ndarray]:
    """Glyphs of single-character emoji, black on white, the longer side 58 pixels."""
    font = ImageFont.truetype(io.BytesIO(data), 160, layout_engine=ImageFont.Layout.BASIC)

    def glyph(text: str) -> Image.Image | None:
        canvas = Image.new("L", (480, 480), 255)
        ImageDraw.Draw(canvas).text((160, 160), text, font=font, fill=0)
        box = Image.eval(canvas, lambda value: 255 - value).getbbox()
        return None if box is None else canvas.crop(box)

    missing = glyph("\U0010fffd")
    images = {}
    for item in emoji:
        image = glyph(item.text) if len(item.text) == 1 else None
        if image is None or (missing is not None and image.tobytes() == missing.tobytes()):
            continue
        scale = 58 / max(image.size)
        image = image.resize(
            [max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS
        )
        canvas = Image.new("RGB", (src.SIZE, src.SIZE), "white")
        canvas.paste(
            image.convert("RGB"), ((src.SIZE - image.width) // 2, (src.SIZE - image.height) // 2)
        )
        images[item.codepoints] = np.asarray(canvas).copy()
    return images


def _unicode_ranges(text: str) -> set[int]:
    points: set[int] = set()
    for part in text.replace("U+", "").split(","):
        first, _, last = part.strip().partition("-")
        points.update(range(int(first, 16), int(last or first, 16) + 1))
    return points


def _emoji_fonts(work: Path, emoji: dict[str, Emoji]) -> list[tuple[str, str, np.ndarray]]:
    """(source, code points, image) of the two black-and-white fonts."""
    sources = src.load_sources()
    found = []
    noto = sources["@fontsource/noto-emoji"]
    for subset, ranges in sorted(src.read_json(noto, work, "unicode.json").items()):
        points = _unicode_ranges(ranges)
        held = [item for item in emoji.values() if len(item.text) == 1 and ord(item.text) in points]
        for weight in NOTO_EMOJI_WEIGHTS:
            data = src.read(
                noto, work, f"files/noto-emoji-{subset.strip('[]')}-{weight}-normal.woff"
            )
            if data is not None and held:
                found += [
                    (f"noto-emoji-{weight}", c, image)
                    for c, image in _font_images(data, held).items()
                ]
    symbola = src.read(
        sources["fonts-symbola"], work, "usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf"
    )
    found += [
        ("symbola", c, image) for c, image in _font_images(symbola, list(emoji.values())).items()
    ]
    return found


def federation_images() -> dict[str, list[np.ndarray]]:
    """The federation's images by code points: only to leave their near-copies out."""
    images: dict[str, list[np.ndarray]] = {}
    for domain in DOMAINS:
        with zipfile.ZipFile(ASSETS / f"{domain}.zip") as archive:
            for member in archive.namelist():
                image = Image.open(io.BytesIO(archive.read(member))).convert("RGB")
                images.setdefault(member.removesuffix(".webp"), []).append(np.asarray(image))
    return images


def _is_near_copy(image: np.ndarray, others: list[np.ndarray]) -> bool:
    return any(np.abs(image.astype(np.int16) - other).mean() < NEAR_COPY * 255 for other in others)


def _build(work: Path) -> None:
    sources = src.load_sources()
    emoji = load_emoji(work)
    names = {slug: c for slug, c in load_names(work, emoji).items() if len(slug) >= 3}
    indices = {codepoints: index for index, codepoints in enumerate(emoji)}
    federation = federation_images()
    rows: list[dict] = []
    images: list[np.ndarray] = []
    left_out: Counter = Counter()
    counts: Counter = Counter()

    def add(source: str, image: np.ndarray | None, codepoints: str | None, name: str) -> None:
        if image is None or image.min() == 255:
            left_out[f"{source}: not rendered"] += 1
        elif codepoints is not None and _is_near_copy(image, federation.get(codepoints, [])):
            left_out[f"{source}: near-copies"] += 1
        else:
            counts[source] += 1
            images.append(image)
            known = emoji[codepoints] if codepoints else None
            text = [known.name, *known.tags, name] if known else [name]
            rows.append(
                {
                    "source": source,
                    "emoji": indices[codepoints] if codepoints else -1,
                    "name": known.name if known else name,
                    "words": [word for word in words(text) if word not in STOP_WORDS],
                }
            )

    for entry in sources.values():
        if not entry["use"].startswith("pretraining") or not entry["name"].startswith(
            "@iconify-json/"
        ):
            continue
        started = time.time()
        prefix = entry["name"].split("/")[1]
        icons = src.read_json(entry, work, "icons.json")
        wanted: list[tuple[str, str | None, str]] = []  # icon, code points, readable name
        if entry["use"] == "pretraining emoji":
            matched = {
                icon: c for c, icon in iconify_images(entry["name"], work, emoji, names).items()
            }
            for icon in sorted(icons["icons"]):
                codepoints = matched.get(icon) or match_name(icon, names)
                if codepoints is None and (
                    re.search(r"skin-tone|^flag-|^(wo)?man-", icon) or prefix == "fxemoji"
                ):
                    continue  # variants, and names without word breaks, say little
                wanted.append((icon, codepoints, icon.replace("-", " ")))
        else:
            pattern = re.compile(ICON_FILTER.get(prefix, ""))
            for icon in sorted(icons["icons"]):
                if icons["icons"][icon].get("hidden") or not pattern.match(icon):
                    continue
                plain = icon
                while STYLE_WORDS.search(plain):
                    plain = STYLE_WORDS.sub("", plain)
                wanted.append((icon, match_name(plain, names), plain.replace("-", " ")))
        documents = [src.icon_svg(icons, icon) for icon, _, _ in wanted]
        rendered = src.render([document or "" for document in documents], work, sources)
        for (_, codepoints, name), image in zip(wanted, rendered, strict=True):
            add(prefix, image, codepoints, name)
        print(f"{prefix}: {counts[prefix]} images, {time.time() - started:.0f} s", flush=True)
    for source, codepoints, image in _emoji_fonts(work, emoji):
        add(source, image, codepoints, emoji[codepoints].name)

    folder = work / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", np.stack(images))
    table = {
        "rows": rows,
        "left_out": dict(left_out),
        "counts": dict(counts),
        "emoji": [
            [item.codepoints, item.name, item.subgroup, list(item.tags)] for item in emoji.values()
        ],
    }
    (folder / "table.json").write_text(json.dumps(table), encoding="utf-8")
    print(
        json.dumps(
            {
                "images": len(rows),
                "emoji": sum(row["emoji"] >= 0 for row in rows),
                "left_out": left_out,
            }
        )
    )


def load_corpus(work: Path) -> Corpus:
    """The pretraining images, rendered first when they are not in the work folder."""
    if not (work / "corpus" / "table.json").exists():
        _build(work)
    table = json.loads((work / "corpus" / "table.json").read_text(encoding="utf-8"))
    rows = table["rows"]
    source_list = sorted({row["source"] for row in rows})
    return Corpus(
        images=np.load(work / "corpus" / "images.npy"),
        names=[row["name"] for row in rows],
        words=[row["words"] for row in rows],
        emoji=np.array([row["emoji"] for row in rows]),
        source=np.array([source_list.index(row["source"]) for row in rows]),
        emoji_list=[
            Emoji(c, name, subgroup, tuple(tags)) for c, name, subgroup, tags in table["emoji"]
        ],
        source_list=source_list,
    )


def vocabulary(corpus: Corpus) -> list[str]:
    """The words that serve as training targets: those of enough different names."""
    by_name = {name: held for name, held in zip(corpus.names, corpus.words, strict=True)}
    counts = Counter(word for held in by_name.values() for word in held)
    return sorted(word for word, count in counts.items() if count >= MIN_WORD_COUNT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=src.DEFAULT_WORK, help="work folder (default %(default)s)"
    )
    _build(parser.parse_args().work)


if __name__ == "__main__":
    main()
