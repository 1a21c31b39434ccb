"""What made the embedded federation and its models still works, without a network and without
training for minutes."""

import csv
import runpy
import sys
import tomllib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tools.embedded.image_tower as image_tower
from fedpgp.clip import load_clip
from fedpgp.clip.conv_stem import put_stem
from fedpgp.clip.torchvision_fix import import_open_clip
from tools.embedded.build_data import CLASSES
from tools.embedded.captions import CompactText
from tools.embedded.distill import Teacher, Views, start_linear
from tools.embedded.images import augment
from tools.embedded.models import (
    ASSETS,
    CONV_STEM,
    TEXT_CFG,
    TINY_CFG,
    TINY_VIT_CFG,
    encode,
    finished_image_tower,
    new_clip,
    write_model,
)
from tools.embedded.sessions import Budget

open_clip = import_open_clip()

COMMANDS = ("build_data", "corpus", "pretrain", "evaluate")


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_names_every_command_and_each_starts(command, monkeypatch, capsys):
    name = f"tools.embedded.{command}"
    root = ASSETS.parents[1]
    assert f"python -m {name}" in (root / "tools/embedded/README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, name, raising=False)  # it is run, not only imported
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_module(name, run_name="__main__")
    assert capsys.readouterr().out.startswith("usage:")


def test_classes_are_those_of_the_shipped_federation():
    with (ASSETS / "emoji" / "classes.csv").open(newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == [name for name, _ in CLASSES]


def test_stem_as_a_matrix_product_gives_the_convolution_and_its_gradient():
    torch.manual_seed(0)
    visual = new_clip(TINY_CFG).visual.double()
    conv, images = visual.trunk.stem.conv, torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted = conv(images)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), conv.weight)
    image_tower.speed_up_stem(visual)
    got = conv(images)
    assert torch.allclose(got, wanted, atol=1e-12)
    assert torch.allclose(
        torch.autograd.grad(got.square().sum(), conv.weight)[0], gradient, atol=1e-9
    )


def test_compact_text_tower_gives_the_features_of_the_whole_one():
    torch.manual_seed(0)
    model = new_clip(TINY_VIT_CFG).eval()
    texts = ["a photo of a red panda.", "clock"]
    tower = CompactText(model, texts)
    tower.write_table()
    with torch.no_grad():
        got, whole = (
            tower(texts),
            model.encode_text(open_clip.SimpleTokenizer()(texts, TEXT_CFG["context_length"])),
        )
    assert torch.allclose(got, F.normalize(whole, dim=-1), atol=1e-5)


def test_a_written_model_is_read_again_in_half_precision(tmp_path):
    model = new_clip(TINY_VIT_CFG)
    write_model(tmp_path, TINY_VIT_CFG, model)
    again = open_clip.create_model(f"local-dir:{tmp_path}")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float()), key
    tower = finished_image_tower(tmp_path)
    assert set(tower) == set(model.visual.state_dict())
    image = np.zeros((2, 64, 64, 3), np.uint8)
    model.visual.load_state_dict(tower)
    features = encode(model.visual, image, size=64)
    assert features.shape == (2, TINY_VIT_CFG["embed_dim"])
    assert torch.allclose(features.norm(dim=-1), torch.ones(2), atol=1e-3)


@pytest.mark.slow
def test_the_teacher_of_tiny_vit_is_tiny_in_two_parts_and_the_student_begins_near_it(tmp_path):
    """So near here since there are fewer patches than numbers in a token."""
    torch.manual_seed(0)
    clip, model = load_clip("tiny"), new_clip(TINY_VIT_CFG)
    put_stem(model, CONV_STEM)
    visual, stem = model.visual, model.visual.conv1
    trunk = clip.model.visual.trunk.state_dict()
    stem.network.load_state_dict({key: trunk[key] for key in stem.network.state_dict()})
    teacher, pixels = Teacher(clip, stem.network.eval()), torch.randn(8, 3, 128, 128)
    views = Views(*teacher.see(pixels))
    features, patches = teacher.features(views.grids)
    assert (features * clip.encode_images(pixels)).sum(1).min() > 0.999
    assert (patches * clip.encode_patches(pixels)).sum(-1).min() > 0.99
    start_linear(visual, stem.projection, views, teacher)
    tokens = stem.projection(views.maps.float()).flatten(2).transpose(1, 2)
    assert (F.normalize(tokens @ visual.proj, dim=-1) * patches).sum(-1).mean() > 0.99
    write_model(tmp_path, TINY_VIT_CFG, model, CONV_STEM)
    again = load_clip(f"local-dir:{tmp_path}").model.visual.conv1.projection.weight
    assert torch.equal(again, stem.projection.weight.half().float())


def test_augmented_pictures_stay_in_range_and_hang_on_the_generator():
    images = torch.randint(
        0, 256, (16, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    first, again, other = (
        augment(images, 48, torch.ones(16, dtype=torch.bool), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first.shape == (16, 3, 48, 48) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_pause_is_not_work(monkeypatch):
    times = iter([0.0, 1.5, 500.0])
    monkeypatch.setattr("tools.embedded.sessions.time.monotonic", lambda: next(times))
    budget = Budget(10.0)
    assert budget.tick() == 11.5
    assert budget.tick() == 11.5 + Budget.LONGEST


def test_the_wheel_leaves_tools_out():
    project = tomllib.loads((ASSETS.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["setuptools"]["packages"]
    assert not any(
        pattern.startswith("tools") or pattern == "*" for pattern in packages["find"]["include"]
    )
