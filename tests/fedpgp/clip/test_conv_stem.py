"""A convolutional stem in the place of a ViT's patch embedding."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fedpgp.clip import load_clip
from fedpgp.clip.conv_stem import ConvStem, convolution_gflop, put_stem
from fedpgp.errors import FedPGPError
from fedpgp.towers.image import ImageTower
from tests.fedpgp.clip.test_loading import save_folder
from tests.helpers.golden import golden_clip

STEM = {"network": "regnetx_002", "last": "s3.b1", "enlarge": 2}


def test_the_stem_of_tiny_vit_sees_what_tiny_sees_at_that_block():
    """The enlarged picture through tiny's trunk, as timm runs it."""
    trunk, clip = load_clip("tiny").model.visual.trunk, load_clip("tiny_vit")
    found = []
    torch.manual_seed(0)
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    hook = trunk.s4.b1.register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        trunk(F.interpolate(images, size=(128, 128), mode="bilinear"))
    hook.remove()
    assert_close(clip.model.visual.conv1.features(images), found[0])


def test_a_tower_with_a_stem_is_open_clips_own_and_keeps_no_graph_of_it():
    clip = load_clip("tiny_vit")
    tower = ImageTower(clip, torch.float64, "vpt")
    torch.manual_seed(0)
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    prompts = torch.randn(1, 1, 2, tower.width, dtype=torch.float64, requires_grad=True)
    embedded = tower.embed(images.unsqueeze(0))
    assert embedded.dtype == torch.float64 and not embedded.requires_grad
    assert tower.encode(embedded, prompts).requires_grad
    ours = tower.encode(embedded)[0].float()
    assert_close(ours, clip.encode_images(images), rtol=0, atol=1e-5)
    assert clip.model.visual.conv1.projection.weight.dtype == torch.float32


def with_stem(folder, stem):
    """A folder with a small model on a stem; returns it."""
    model = copy.deepcopy(golden_clip().model)
    model.visual.conv1 = ConvStem(**{**STEM, "width": 64}).eval()
    save_folder(folder, model)
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "conv_stem": stem}))
    return model


def test_a_folder_asks_for_its_stem(tmp_path, caplog):
    model = with_stem(tmp_path, STEM)
    clip = load_clip(f"local-dir:{tmp_path}")
    assert not caplog.records
    for key, value in model.state_dict().items():
        assert torch.equal(clip.model.state_dict()[key], value.float()), key
    assert "enlarge=2" in repr(clip.model)  # and so in the fingerprint
    with pytest.warns(UserWarning, match="RANDOM weights"):
        assert isinstance(load_clip(f"local-dir:{tmp_path}", "random").model.visual.conv1, ConvStem)


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ({**STEM, "last": "s1.b9"}, "conv_stem.last=s1.b9: RegNet has no such block"),
        ({**STEM, "network": "regnetz_000"}, "conv_stem.network=regnetz_000: timm has no such"),
        ({**STEM, "network": "hf_hub:someone/model"}, "conv_stem.network=hf_hub:.* no such"),
        ({"network": "regnetx_002"}, "it takes network and last"),
        ({**STEM, "enlarge": 0}, "a whole number from 1 on"),
        ("regnetx_002", "it takes network and last"),
        ({**STEM, "enlarge": 1}, "makes 1x1 tokens of an image; .* ask for 2x2"),
        ({**STEM, "last": "s3.b2"}, "another architecture"),
        (None, "it has visual.conv1"),
    ],
)
def test_a_stem_that_does_not_fit_is_named(tmp_path, stem, message):
    with_stem(tmp_path, stem)
    with pytest.raises(FedPGPError, match=f"the weights in {tmp_path} cannot be loaded.*{message}"):
        load_clip(f"local-dir:{tmp_path}")


def test_a_stem_goes_before_a_vit_alone():
    with pytest.raises(ValueError, match="TimmModel has no patch embedding"):
        put_stem(load_clip("tiny").model, STEM)


def test_convolutions_are_counted():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1, groups=2)
    )
    wanted = 2 * (8 * 8 * 4 * 3 * 9 + 8 * 8 * 4 * 2 * 9)
    assert convolution_gflop(layers, 16) == pytest.approx(wanted / 1e9)
