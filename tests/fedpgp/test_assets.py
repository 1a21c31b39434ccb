"""The shipped federation and models are what their documents say."""

import csv
import hashlib
import io
import json
import logging
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fedpgp
from fedpgp.clip import load_clip
from fedpgp.clip.torchvision_fix import import_open_clip

open_clip = import_open_clip()

ASSETS = Path(fedpgp.__file__).parent / "assets"
EMOJI = ASSETS / "emoji"
DOMAINS = ("noto", "twemoji", "fluent", "fluent_flat", "high_contrast", "openmoji")
MODELS = ("tiny", "tiny_vit")


def read(name: str) -> list[dict[str, str]]:
    with (EMOJI / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def members(domain: str) -> list[str]:
    with zipfile.ZipFile(EMOJI / f"{domain}.zip") as archive:
        return archive.namelist()


def test_label_order_is_fixed():
    rows = read("classes.csv")
    assert list(rows[0]) == ["label", "class", "subgroups"]
    assert [int(row["label"]) for row in rows] == list(range(46))
    names = [row["class"] for row in rows]
    assert len(set(names)) == 46
    assert (names[0], names[22], names[23], names[-1]) == (
        "mammal",
        "prohibition sign",
        "bird",
        "public sign",
    )


def test_one_row_an_emoji_split_70_to_30_in_every_class():
    rows = read("emoji.csv")
    assert list(rows[0]) == ["codepoints", "name", "class", "split"]
    points = [row["codepoints"] for row in rows]
    assert points == sorted(set(points)) and len(points) == 1085
    assert {row["class"] for row in rows} == {row["class"] for row in read("classes.csv")}
    counts = Counter((row["class"], row["split"]) for row in rows)
    for name in {row["class"] for row in rows}:
        train, test = counts[name, "train"], counts[name, "test"]
        assert train == round(0.7 * (train + test)) and test >= 3, name


def test_an_emoji_is_on_one_side_in_all_domains():
    """The side hangs on the emoji alone, so the archives may only hold emoji of the table, each
    once."""
    side = {row["codepoints"]: row["split"] for row in read("emoji.csv")}
    seen: dict[str, set[str]] = {"train": set(), "test": set()}
    for domain in DOMAINS:
        names = [name.removesuffix(".webp") for name in members(domain)]
        assert names == sorted(set(names))
        for name in names:
            seen[side[name]].add(name)
    assert not seen["train"] & seen["test"]
    assert len(seen["train"] | seen["test"]) == len(side)


@pytest.mark.parametrize("domain", DOMAINS)
def test_images_are_readable_and_different(domain):
    digests = set()
    with zipfile.ZipFile(EMOJI / f"{domain}.zip") as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (
                1980,
                1,
                1,
                0,
                0,
                0,
            )
            image = Image.open(io.BytesIO(archive.read(info)))
            assert (image.size, image.mode) == ((64, 64), "RGB")
            pixels = np.asarray(image)
            assert pixels.min() < 255, f"{info.filename} is blank"
            digests.add(hashlib.sha256(pixels.tobytes()).digest())
    assert len(digests) == len(members(domain)) > 1050


def test_every_set_has_its_licence():
    attribution = (EMOJI / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for domain in DOMAINS:
        assert f"`{domain}.zip`" in attribution
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (EMOJI / "licences").iterdir()}
    assert set(texts) == {
        "Apache-2.0",
        "CC-BY-4.0",
        "CC-BY-SA-4.0",
        "MIT-fluent-emoji",
        "MIT-emojibase-data",
    }
    assert all(f"licences/{name}.txt" in attribution for name in texts)
    assert (
        "ShareAlike" in texts["CC-BY-SA-4.0"]
        and "ShareAlike" not in texts["CC-BY-4.0"].split("Section 1")[0]
    )
    assert (
        "Miles Johnson" in texts["MIT-emojibase-data"] and "Microsoft" in texts["MIT-fluent-emoji"]
    )
    assert "Version 2.0, January 2004" in texts["Apache-2.0"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads(name, caplog):
    """``tiny`` with open_clip alone, ``tiny_vit`` with what puts its stem there; silently, and
    every weight of the file used."""
    folder = ASSETS / name
    with caplog.at_level(logging.WARNING):
        if name == "tiny":
            model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        else:
            clip = load_clip(name)
            model, preprocess = clip.model, clip.preprocess
    assert not caplog.records
    stored = load_file(folder / "open_clip_model.safetensors")
    assert set(stored) == set(model.state_dict())
    assert all(
        value.dtype == torch.float16 for value in stored.values() if value.dtype.is_floating_point
    )
    assert torch.equal(
        model.visual.state_dict()[key := next(iter(model.visual.state_dict()))],
        stored[f"visual.{key}"].float(),
    )
    assert (folder / "open_clip_model.safetensors").stat().st_size < 31e6
    assert 45 < model.logit_scale.exp().item() < 101

    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    side = config["model_cfg"]["vision_cfg"]["image_size"]
    model.eval()
    pixels = preprocess(Image.new("RGB", (64, 64), "white"))[None]
    assert pixels.shape == (1, 3, side, side)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a bird."])
    assert tokens.shape == (1, 77)
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(tokens)
    assert image.shape == text.shape == (1, config["model_cfg"]["embed_dim"])
    assert image.isfinite().all() and text.isfinite().all()


def test_image_towers_end_in_4x4_positions_or_more():
    tiny = open_clip.create_model(f"local-dir:{ASSETS / 'tiny'}").eval()
    with torch.no_grad():
        positions = tiny.visual.trunk.forward_features(torch.zeros(1, 3, *tiny.visual.image_size))
    assert min(positions.shape[-2:]) >= 4
    vit = json.loads((ASSETS / "tiny_vit" / "open_clip_config.json").read_text(encoding="utf-8"))[
        "model_cfg"
    ]["vision_cfg"]
    assert vit["image_size"] // vit["patch_size"] >= 4


def test_the_stem_is_tinys_own_first_blocks():
    weights, whole = (
        load_file(ASSETS / name / "open_clip_model.safetensors") for name in MODELS[::-1]
    )
    stem = {k: v for k, v in weights.items() if k.startswith("visual.conv1.network.")}
    assert any(key.startswith("visual.conv1.network.s4.b1.") for key in stem)
    for key, value in stem.items():
        theirs = whole[key.replace("visual.conv1.network.", "visual.trunk.")]
        assert torch.equal(value, theirs), key


def test_tiny_vit_has_at_most_3_million_image_parameters():
    visual = load_clip("tiny_vit").model.visual
    assert sum(p.numel() for p in visual.parameters()) <= 3_000_000


def test_models_share_their_text_tower():
    first, second = (load_file(ASSETS / name / "open_clip_model.safetensors") for name in MODELS)
    shared = {key for key in first if not key.startswith("visual.")}
    assert shared == {key for key in second if not key.startswith("visual.")}
    assert all(torch.equal(first[key], second[key]) for key in shared)


@pytest.mark.parametrize("name", MODELS)
def test_model_card_is_complete(name):
    card = (ASSETS / name / "MODEL_CARD.md").read_text(encoding="utf-8")
    for word in ("zero-shot", "linear probe", "Licence", "Seed", *DOMAINS):
        assert word in card, word
