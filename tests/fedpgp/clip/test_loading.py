"""Loading models by name: what works, and what each mistake says."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from fedpgp.clip import FrozenCLIP, load_clip, resolve_device
from fedpgp.clip.model import _attention_pool
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def rn50():
    with pytest.warns(UserWarning, match="RANDOM weights"):
        return load_clip("rn50", "random")


def test_random_weights_say_so_and_encode(rn50):
    image = rn50.preprocess(Image.new("RGB", (300, 200), "red"))
    assert image.shape == (3, 224, 224)
    features = rn50.encode_images(image[None])
    assert features.shape == (1, 1024) and features.norm() == pytest.approx(1, abs=1e-5)
    texts = rn50.encode_texts(["a photo of a cat.", "a photo of a dog."])
    assert texts.shape == (2, 1024) and rn50.width == 512
    assert rn50.embed_phrase("a photo of a").shape == (4, 512)
    assert not any(p.requires_grad for p in rn50.model.parameters())


def test_openai_weights_mean_quickgelu(rn50):
    QuickGELU = import_open_clip().transformer.QuickGELU

    assert isinstance(rn50.model.transformer.resblocks[0].mlp.gelu, QuickGELU)
    assert rn50.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


@pytest.mark.parametrize("name", ["tiny", "tiny_vit"])
def test_shipped_models_load_without_a_network(name):
    clip = load_clip(name)
    assert clip.encode_images(clip.preprocess(Image.new("RGB", (64, 64)))[None]).isfinite().all()
    assert clip.fingerprint == load_clip(name).fingerprint and len(clip.fingerprint) == 64


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("vit_b61", None, "did you mean .*vit_b16"),
        ("ViT-B-16", None, "needs model.pretrained.*laion2b_s34b_b88k.*random"),
        ("ViT-B-16", "openai", "use model.name=ViT-B-16-quickgelu"),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "use model.name=ViT-B-16"),
        ("vit_b16", "openia", "did you mean openai"),
        ("vit_b16", "/nowhere/weights.pt", "/nowhere/weights.pt does not exist"),
        ("vit_b16", None, r"Download them from https://huggingface.co/.*model.pretrained=FILE"),
        ("tiny", "openai", "comes with its own weights"),
        ("local-dir:/nowhere", None, "/nowhere"),
        ("local-dir:/nowhere", "/a/b.pt", "b.pt would not be read: set model.pretrained=null"),
        ("hf-hub:nobody/nothing", "a.pt", "a.pt would not be read: set model.pretrained=null"),
    ],
)
def test_mistakes_say_what_to_do(name, pretrained, message):
    with pytest.raises(FedPGPError, match=message):
        load_clip(name, pretrained)


def save_folder(folder, model, quick_gelu=True):
    config = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(
        {k: v.float().contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


def test_a_folder_of_ones_own(tmp_path):
    from tests.helpers.golden import golden_clip

    save_folder(tmp_path, golden_clip().model)
    clip = load_clip(f"local-dir:{tmp_path}")
    assert isinstance(clip, FrozenCLIP) and clip.width == 32


def test_truncated_weights_are_named(tmp_path):
    from tests.helpers.golden import golden_clip

    save_folder(tmp_path, golden_clip().model)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(FedPGPError, match=f"{tmp_path}.*cannot be read"):
        load_clip(f"local-dir:{tmp_path}")
    with pytest.raises(FedPGPError, match="cannot be loaded into RN50-quickgelu"):
        load_clip("rn50", str(weights))
    weights.unlink()
    with pytest.raises(FedPGPError, match=str(tmp_path)):
        load_clip(f"local-dir:{tmp_path}")


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(FedPGPError, match="did you mean cuda"):
        resolve_device("cudaa")
    if not torch.cuda.is_available():
        with pytest.raises(FedPGPError, match="device=auto"):
            resolve_device("cuda")


@pytest.mark.parametrize("architecture", ["vit", "resnet", "tiny"])
def test_patches_pool_to_the_feature(architecture):
    """Each patch is projected as the pooled token is: checked on the pooled one, token by token."""
    if architecture == "tiny":
        clip = load_clip("tiny")
    else:
        CLIP = import_open_clip().model.CLIP

        torch.manual_seed(0)
        vision = {"vit": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}}.get(
            architecture,
            {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        )
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        clip = FrozenCLIP(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text))
    size = clip.model.visual.image_size
    images = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    patches = clip.encode_patches(images)
    assert_close(patches.norm(dim=-1), torch.ones(patches.shape[:2]))
    if architecture == "vit":
        tower = clip.model.visual
        tokens = tower.ln_post(
            tower.transformer(tower._embeds(images))
        )  # row by row, class token included
        rows = torch.stack(
            [F.normalize(tokens[:, i] @ tower.proj, dim=-1) for i in range(tokens.shape[1])], 1
        )
        assert_close(rows[:, 0], clip.encode_images(images))
        assert_close(rows[:, 1:], patches)
        assert patches.shape == (2, 16, 16)
    if architecture == "resnet":
        grids = []
        hook = clip.model.visual.attnpool.register_forward_pre_hook(
            lambda module, inputs: grids.append(inputs[0])
        )
        pooled = clip.encode_images(images)
        hook.remove()
        assert_close(
            F.normalize(_attention_pool(clip.model.visual.attnpool, grids[0])[:, 0], dim=-1), pooled
        )
        assert patches.shape == (2, 4, 16)
    if architecture == "tiny":
        trunk, head = clip.model.visual.trunk, clip.model.visual.head
        grid = trunk.forward_features(images).flatten(2)
        expected = torch.stack(
            [F.normalize(head(grid[:, :, i]), dim=-1) for i in range(grid.shape[-1])], 1
        )
        assert_close(patches, expected)


def test_raw_features_and_ensembles_are_what_the_towers_make():
    clip = load_clip("tiny")
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    raw = clip.features_of("features_raw", images)
    assert_close(raw, clip.model.encode_image(images))
    assert_close(F.normalize(raw, dim=-1), clip.encode_images(images))
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(2))
    tokens = [clip.tokenizer([f"a {name}", f"the large {name}."]) for name in ("cat", "dog")]
    texts = torch.stack([F.normalize(clip.model.encode_text(t).mean(0), dim=0) for t in tokens])
    assert_close(clip.encode_ensemble(("a {}", "the large {}."), ["cat", "dog"]), texts)
