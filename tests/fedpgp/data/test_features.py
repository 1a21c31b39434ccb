import json
import os
import shutil
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedpgp.clip import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.data import ArraySplit, Dataset, FileSplit, Subset
from fedpgp.data import features as feature_cache
from fedpgp.data.features import encode_split, feature_key
from fedpgp.errors import FedPGPError
from fedpgp.inputs import Inputs
from fedpgp.methods import METHODS
from fedpgp.task import Task
from fedpgp.training import TrainingSettings

# What a process of its own runs: three children start together; each prints how many batches of
# each size of a split it encoded, and a sum. They are forked before torch computes anything: it
# does not survive a fork after that.
CHILDREN = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("test_features", sys.argv[1])
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
module.import_open_clip()
if all(os.fork() for _ in range(3)):  # a child leaves the loop at once
    sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)))
clip = module.make_clip()
for size in sys.argv[3:]:
    batches = []
    split, progress = module.make_split(int(size)), lambda *a: batches.append(a)
    features = module.encode(clip, split, sys.argv[2], progress=progress)
    os.write(1, f"{size} {len(batches)} {float(features.astype('f8').sum())!r}\\n".encode())
os._exit(0)
"""


LARGE = 3000
"""Images of a split with several parts."""


def make_clip(seed: int = 0) -> FrozenCLIP:
    """A small open_clip CLIP with random weights."""
    CLIP = import_open_clip().model.CLIP

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
        text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        return FrozenCLIP(CLIP(16, vision, text))


def make_split(images: int = 50) -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 255, (images, 20, 24, 3), dtype=np.uint8)
    return ArraySplit(pixels, np.zeros(images))


def encode(clip, split, cache_dir, **arguments):
    return encode_split(
        clip, split, cache_dir=cache_dir, dataset_name="made", split_name="train", **arguments
    )


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture
def counted():
    """A progress callback that remembers its calls."""
    calls = []

    def progress(done, total):
        calls.append((done, total))

    return types.SimpleNamespace(calls=calls, progress=progress)


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_features_are_the_models_in_order(clip, tmp_path, counted):
    split = make_split()
    features = encode(clip, split, tmp_path, batch_size=7, progress=counted.progress)
    assert (
        isinstance(features, np.memmap)
        and features.dtype == np.float32
        and features.shape == (50, 16)
    )
    expected = [clip.encode_images(clip.preprocess(split.image(i))[None])[0] for i in range(50)]
    assert np.allclose(features, torch.stack(expected).numpy(), atol=1e-6)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert counted.calls == [(min(7 * k, 50), 50) for k in range(1, 9)]
    assert np.array_equal(load_file(only_file(tmp_path))["features"], features), (
        "any safetensors reader opens it"
    )
    with pytest.raises(ValueError, match="read-only"):
        features[0] = 0


def test_mirrored_features_are_those_of_the_mirrored_images(clip, tmp_path):
    split = make_split()
    found = encode(clip, split, tmp_path, what="mirrored")
    seen = torch.stack([clip.preprocess(split.image(i)) for i in range(50)])
    assert np.allclose(found, clip.encode_images(seen.flip(-1)).numpy(), atol=1e-6)
    assert not np.allclose(found, encode(clip, split, tmp_path), atol=1e-2)


def test_the_second_time_nothing_is_encoded(clip, tmp_path, counted):
    first = encode(clip, make_split(), tmp_path)
    second = encode(make_clip(), make_split(), tmp_path, progress=counted.progress)
    assert np.array_equal(first, second) and not counted.calls


def test_the_key_follows_weights_images_order_and_preprocessing(clip, tmp_path, draw):
    split = make_split()
    base = feature_key(clip, split)
    assert base == feature_key(make_clip(), make_split())
    other = make_split()
    other.pixels[3, 2, 1, 0] ^= 1
    preprocessed = FrozenCLIP(make_clip().model, preprocess=torch.nn.Identity())
    keys = [
        base,
        feature_key(make_clip(1), split),
        feature_key(clip, other),
        feature_key(preprocessed, split),
    ]
    keys += [feature_key(clip, Subset(split, rows)) for rows in ([0, 1], [1, 0])]
    for name in "ab":
        draw(tmp_path / f"{name}.png", (5, 5, 5))
    keys += [
        feature_key(clip, FileSplit(tmp_path, order, [0, 0]))
        for order in (["a.png", "b.png"], ["b.png", "a.png"])
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_has_no_address_in_it(clip):
    """Functions among the transforms print their address, which differs from process to process."""

    class Transform:
        def __init__(self, function):
            self.function = function

        def __repr__(self):
            return f"Transform({self.function!r})"

    def make():
        def convert(image):
            return image

        return FrozenCLIP(clip.model, preprocess=Transform(convert))

    one, two = make(), make()
    assert repr(one.preprocess) != repr(two.preprocess)
    assert feature_key(one, make_split()) == feature_key(two, make_split())


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "foreign", "flipped", "header", "other_key", "short_header"]
)
def test_a_damaged_file_is_made_anew(clip, tmp_path, counted, damage, caplog):
    good = np.array(encode(clip, make_split(), tmp_path))
    path = only_file(tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if damage == "truncated":
        content = content[:-100]
    elif damage == "empty":
        content = b""
    elif damage == "foreign":
        content = b"PK\x03\x04 not ours at all" * 20
    elif damage == "flipped":
        content = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    elif damage == "header":
        content = content[:8] + b"{" * length + content[8 + length :]
    elif damage == "short_header":
        content = content[:50]
    elif damage == "other_key":
        header["__metadata__"]["key"] = "0" * 64
        text = json.dumps(header).encode().ljust(length)
        content = content[:8] + text + content[8 + length :]
    path.unlink()  # the old one is mapped
    path.write_bytes(content)
    assert np.array_equal(encode(clip, make_split(), tmp_path, progress=counted.progress), good)
    assert counted.calls and "made anew" in caplog.text


def test_several_processes_at_once_encode_once_and_share_a_large_split(tmp_path):
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", CHILDREN, __file__, str(cache), "50", str(LARGE)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=env, check=True, timeout=120
    ).stdout
    answers = [line.split() for line in output.splitlines()]
    batches = {
        size: sorted(int(done) for of, done, _ in answers if of == size)
        for size in ("50", str(LARGE))
    }
    assert batches["50"] == [0, 0, 2]
    assert sum(batches[str(LARGE)]) == -(-LARGE // 32) and batches[str(LARGE)][1] > 0
    assert len({(size, total) for size, _, total in answers}) == 2
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert not [path for path in cache.iterdir() if ".part" in path.name]


def test_parts_of_a_killed_process_are_used_and_change_nothing(
    clip, tmp_path, counted, monkeypatch
):
    split = make_split(100)
    whole = encode(clip, split, tmp_path / "whole", batch_size=7)
    monkeypatch.setattr(feature_cache, "PART", 30)  # 35: whole batches

    def killed(done: int, total: int) -> None:
        counted.progress(done, total)
        if done > 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(clip, split, tmp_path / "parts", batch_size=7, progress=killed)
    assert [done for done, _ in counted.calls] == [*range(7, 71, 7), 77]
    counted.calls.clear()
    found = encode(clip, split, tmp_path / "parts", batch_size=7, progress=counted.progress)
    assert [done for done, _ in counted.calls] == [77, 84, 91, 98, 100]
    assert found.tobytes() == whole.tobytes()
    assert only_file(tmp_path / "parts").name == only_file(tmp_path / "whole").name
    assert not list((tmp_path / "parts").glob("*.part"))


def test_leftovers_of_a_killed_process_are_removed(clip, tmp_path):
    encode(clip, make_split(), tmp_path)
    path = only_file(tmp_path)
    path.unlink()
    (tmp_path / f".{path.name}.99999999.tmp").write_bytes(b"half")
    encode(clip, make_split(), tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_too_little_space_is_noticed_before_all_is_encoded(clip, tmp_path, counted, monkeypatch):
    # The disk of the machine cannot be filled by a test: only the figure is made up.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100))
    with pytest.raises(
        FedPGPError, match=rf"no space left for the cache in {tmp_path}.*MB are needed.*cache_dir"
    ):
        encode(clip, make_split(), tmp_path, batch_size=5, progress=counted.progress)
    assert len(counted.calls) == 0
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_broken_image_is_named_and_nothing_is_kept(clip, tmp_path, draw):
    draw(tmp_path / "a.png", (1, 2, 3))
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(FedPGPError, match=r"b\.png cannot be read"):
        encode(clip, FileSplit(tmp_path, ["a.png", "b.png"], [0, 1]), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_a_model_that_gives_nan_is_refused(tmp_path):
    clip = make_clip()
    clip.model.visual.proj.data[0, 0] = float("nan")
    with pytest.raises(FedPGPError, match="NaN or Inf for 50 of 50 images"):
        encode(clip, make_split(), tmp_path)


def test_a_float64_model_gives_float32_features(tmp_path):
    clip = FrozenCLIP(make_clip().model.double())
    features = encode(clip, make_split(), tmp_path)
    assert features.dtype == np.float32
    assert feature_key(clip, make_split()) != feature_key(make_clip(), make_split())


def test_raw_features_give_those_of_unit_norm_to_the_last_bit(clip, tmp_path, counted):
    """FedCLIP reads the one of its test images, and zero-shot CLIP the other."""
    alone = encode(clip, make_split(), tmp_path / "alone")
    encode(clip, make_split(), tmp_path / "both", what="features_raw")
    found = encode(clip, make_split(), tmp_path / "both", progress=counted.progress)
    assert not counted.calls and found.tobytes() == alone.tobytes()


def test_raw_features_in_a_file_have_too_few_digits_for_a_float64_model(tmp_path, counted):
    clip = FrozenCLIP(make_clip().model.double())
    alone = encode(clip, make_split(), tmp_path / "alone")
    encode(clip, make_split(), tmp_path / "both", what="features_raw")
    found = encode(clip, make_split(), tmp_path / "both", progress=counted.progress)
    assert counted.calls and found.tobytes() == alone.tobytes()


def test_all_that_is_read_of_test_images_takes_one_pass(clip, tmp_path, counted):
    """Whatever is asked for first by a federation's inputs."""
    asked = []

    def source(what, split, view=None):
        asked.append((what, split))
        return encode(
            clip, make_split(), tmp_path, what=what, batch_size=50, progress=counted.progress
        )

    dataset = Dataset("made", ["cat"], "a {}.", make_split(), None, make_split())
    method = METHODS["fedclip"](METHODS["fedclip"].Settings(), Task(clip, ["cat"], n_ctx=4))
    sources = {what: partial(source, what) for what in ("features", "features_raw")}
    Inputs(method, dataset, sources, TrainingSettings()).encode()
    assert {("features", "test"), ("features_raw", "test")} <= set(asked)
    assert counted.calls == [(50, 50)]
