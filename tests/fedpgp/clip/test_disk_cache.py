"""A model's cache gives what the model gives, without loading it, and never what is damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.settings import composed
from fedpgp.assets_path import asset
from fedpgp.build import build_federation
from fedpgp.clip import disk_cache, load_clip
from fedpgp.clip.disk_cache import CachedCLIP
from fedpgp.text import PromptedTextEncoder

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["cat", "golden retriever", "tea cup"]


SCRIPT = """
import sys, json
from fedpgp.build import build_federation

federation = build_federation(json.loads(sys.argv[1]))
shared = federation.models.initial_shared()
list(federation.train(shared, [0], 1, lambda client: None))
list(federation.evaluate(shared, [0], lambda client: None, zero_shot=True))
print(sorted({"open_clip", "torchvision", "timm"} & set(sys.modules)))
"""


def answers(clip):
    context = clip.embed_phrase("a photo of a").double()
    encoder = PromptedTextEncoder(clip, NAMES, 4, dtype=torch.float64)
    return {
        "photo": clip.encode_texts([f"a photo of a {name}." for name in NAMES]),
        "prompted": encoder(context),
        "about": (
            clip.logit_scale,
            clip.fingerprint,
            clip.width,
            clip.dtype,
            clip.preprocessing,
            encoder.path,
        ),
    }


def same(one, other):
    assert one["about"] == other["about"]
    for name in ("photo", "prompted"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)


def refuse():
    raise AssertionError("the model was loaded")


def test_the_memory_answers_as_the_model(tmp_path):
    model = load_clip("tiny")
    first = answers(CachedCLIP.of(lambda: model, "tiny", None, tmp_path, "cpu"))
    again = answers(CachedCLIP.of(refuse, "tiny", None, tmp_path, "cpu"))
    same(first, answers(model))
    same(again, first)
    with pytest.raises(AssertionError, match="the model was loaded"):
        CachedCLIP.of(refuse, "tiny", None, tmp_path, "cpu").encode_images(
            torch.zeros(1, 3, 64, 64)
        )
    with pytest.raises(AssertionError, match="the model was loaded"):
        answers(CachedCLIP.of(refuse, "tiny_vit", None, tmp_path, "cpu"))


def test_a_damaged_memory_is_made_anew(tmp_path):
    model = load_clip("tiny")
    first = answers(CachedCLIP.of(lambda: model, "tiny", None, tmp_path, "cpu"))
    for path in tmp_path.rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(bytes(data))
    same(answers(CachedCLIP.of(lambda: model, "tiny", None, tmp_path, "cpu")), first)
    with_nothing = answers(CachedCLIP.of(refuse, "tiny", None, tmp_path, "cpu"))
    same(with_nothing, first)


def test_another_version_of_the_code_overwrites_what_the_last_one_wrote(tmp_path, monkeypatch):
    model = load_clip("tiny")
    answers(CachedCLIP.of(lambda: model, "tiny", None, tmp_path, "cpu"))
    files = sorted(tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr(disk_cache, "_version", lambda: "the next version")
    with pytest.raises(AssertionError, match="the model was loaded"):
        answers(CachedCLIP.of(refuse, "tiny", None, tmp_path, "cpu"))
    answers(CachedCLIP.of(lambda: model, "tiny", None, tmp_path, "cpu"))
    answers(CachedCLIP.of(refuse, "tiny", None, tmp_path, "cpu"))
    assert sorted(tmp_path.rglob("*.safetensors")) == files


def test_other_weights_in_the_same_folder_are_another_model(tmp_path):
    folder, cache = tmp_path / "weights", tmp_path / "cache"
    folder.mkdir()
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (folder / name).write_bytes(asset("tiny", name).read_bytes())
    name = f"local-dir:{folder}"
    CachedCLIP.of(lambda: load_clip(name), name, None, cache, "cpu").encode_texts(["a cat"])
    CachedCLIP.of(refuse, name, None, cache, "cpu").encode_texts(["a cat"])
    os.utime(folder / "open_clip_model.safetensors", (1, 1))
    with pytest.raises(AssertionError, match="the model was loaded"):
        CachedCLIP.of(refuse, name, None, cache, "cpu").encode_texts(["a cat"])


@pytest.mark.parametrize("cache", [None, "model"])
def test_training_from_the_cache_imports_no_open_clip(tmp_path, cache):
    """With cached features a worker, or a node of a deployment, trains and evaluates without
    open_clip, torchvision or the image tower.
    """
    config = composed(
        [
            "runtime=inline",
            "clients=2",
            "dataset.domains=[noto]",
            "partition=dirichlet",
            "shots=2",
            "local_epochs=1",
        ]
    )
    config["runtime"]["cache_dir"] = str(tmp_path / "features")
    if cache:
        config["model"]["memory"] = str(tmp_path / cache)
    federation = build_federation(config)  # fills the caches
    shared = federation.models.initial_shared()
    list(federation.train(shared, [0], 1, lambda client: None))
    list(federation.evaluate(shared, [0], lambda client: None, zero_shot=True))
    command = [sys.executable, "-c", SCRIPT, json.dumps(config)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_method_inside_the_image_tower_starts_from_memory(tmp_path):
    """Its process imports open_clip late, when torch has long been there."""
    config = composed(["method=promptsrc", "model=tiny_vit", "runtime=inline"])
    config["model"]["memory"] = str(tmp_path / "models")
    build_federation(config).models.initial_shared()  # fills the memory
    code = "import json, sys; from fedpgp.build import build_federation; "
    code += "build_federation(json.loads(sys.argv[1])).models.initial_shared()"
    command = [sys.executable, "-c", code, json.dumps(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
