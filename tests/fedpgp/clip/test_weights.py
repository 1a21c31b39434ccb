"""Weights files as people have them: which load, to the right features, and what is said of the
others."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from fedpgp.clip import FrozenCLIP, load_clip
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError
from tests.helpers.weights import save_archive, save_folder

open_clip = import_open_clip()

TEXTS = ["a photo of a cat.", "a photo of a tree."]
SIZES = {
    "Mini": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
    "Maxi": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4},
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Two small architectures on open_clip's list, each with GELU and with QuickGELU."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, vision in SIZES.items():
        text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
        (folder / f"{name}.json").write_text(json.dumps(config))
        (folder / f"{name}-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS]
        )
        patch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
        for file in folder.iterdir():
            open_clip.add_model_config(file)
        yield


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    made = open_clip.create_model("Mini-quickgelu")
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.half().float().eval()  # exact in half precision too


@pytest.fixture(scope="module")
def expected(model):
    with torch.no_grad():
        return model.encode_text(open_clip.tokenize(TEXTS), normalize=True)


@pytest.fixture(scope="module")
def archive(model, tmp_path_factory):
    return save_archive(model, tmp_path_factory.mktemp("openai") / "Mini.pt")


PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def features(clip):
    """Of texts and images."""
    return clip.encode_texts(TEXTS), clip.encode_images(PIXELS)


def same_to_the_bit(ours, theirs):
    """Whether a loaded model and a model of open_clip's, frozen as ours is, are one."""
    state, frozen = ours.model.state_dict(), FrozenCLIP(copy.deepcopy(theirs))
    equal = [torch.equal(state[key], tensor) for key, tensor in theirs.state_dict().items()]
    equal += [torch.equal(*pair) for pair in zip(features(ours), features(frozen), strict=True)]
    return all(equal) and len(state) == len(theirs.state_dict())


def test_openais_archive_is_read_and_its_activation_known(archive, model, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to say
        clip = load_clip("Mini-quickgelu", str(archive))
    assert clip.dtype == torch.float32
    assert_close(clip.encode_texts(TEXTS), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = open_clip.load_openai_model(str(archive), precision="fp32", device="cpu")
    assert same_to_the_bit(clip, theirs) and same_to_the_bit(clip, model)
    with pytest.raises(
        FedPGPError, match="archive of OpenAI's, whose models have QuickGELU.*=Mini-quickgelu"
    ):
        load_clip("Mini", str(archive))


@pytest.mark.filterwarnings("ignore:.*does not say its activation")
@pytest.mark.parametrize(
    "form", ["plain", "safetensors", "wrapped", "module", "wrapped module", "half", "bfloat16"]
)
def test_the_same_weights_in_every_form(form, model, expected, tmp_path):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if "module" in form:
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    if form in ("half", "bfloat16"):
        state = {key: tensor.to(getattr(torch, form)) for key, tensor in state.items()}
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save({"epoch": 3, "state_dict": state} if "wrapped" in form else state, file)
    tolerance = {"atol": 0.02, "rtol": 0} if form == "bfloat16" else {}
    clip = load_clip("Mini-quickgelu", str(file))
    assert_close(clip.encode_texts(TEXTS), expected, **tolerance)
    theirs = open_clip.create_model("Mini-quickgelu", pretrained=str(file))
    assert same_to_the_bit(clip, theirs)
    assert same_to_the_bit(clip, model) == (form != "bfloat16")
    other = load_clip("Mini", str(file))  # the other activation: other features, hence the warning
    assert not torch.equal(features(other)[1], features(clip)[1])


@pytest.mark.parametrize(
    "file", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "model.pth"]
)
def test_a_folder_with_weights_of_any_kind(file, model, expected, tmp_path):
    config = open_clip.get_model_config("Mini-quickgelu")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(
        FedPGPError, match=f"there are no weights in {tmp_path}.*open_clip_pytorch_model.bin"
    ):
        load_clip(f"local-dir:{tmp_path}")
    state = model.state_dict()
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(
        state, tmp_path / file
    )
    assert_close(load_clip(f"local-dir:{tmp_path}").encode_texts(TEXTS), expected)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        FedPGPError, match=f"the weights in {tmp_path} cannot be loaded: it cannot be read"
    ):
        load_clip(f"local-dir:{tmp_path}")


def test_a_repository_of_the_hub_in_its_cache(model, tmp_path, monkeypatch):
    """As ``hf download`` leaves it (LAION's and DFN's weights are such repositories); nothing is
    asked of the network."""
    import huggingface_hub.constants as hub

    repository = tmp_path / "models--somebody--Mini"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    config = open_clip.get_model_config("Mini-quickgelu")
    save_folder(model, config, repository / "snapshots" / "abc")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert same_to_the_bit(load_clip("hf-hub:somebody/Mini"), model)


def test_weights_in_several_parts_are_said_to_be(model, tmp_path):
    config = open_clip.get_model_config("Mini-quickgelu")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    state = model.state_dict()
    for i, part in enumerate((list(state)[:10], list(state)[10:]), 1):
        file = tmp_path / f"model-0000{i}-of-00002.safetensors"
        save_file({key: state[key].contiguous() for key in part}, file)
    with pytest.raises(FedPGPError, match="it is in several parts .*put all tensors into one file"):
        load_clip(f"local-dir:{tmp_path}")


class Anything:
    """Of nobody's package."""


def files_that_do_not_fit(model, folder):
    """What is in a file -> its path, and what should be said of it."""
    state = model.state_dict()
    layers = {
        f"{tower}_model.encoder.layers.0.layer_norm1.weight": torch.ones(64)
        for tower in ("text", "vision")
    }
    prompts = {
        "state_dict": {"ctx": torch.ones(16, 64), "token_prefix": torch.ones(3, 1, 64)},
        "epoch": 50,
    }
    fewer = {
        key: tensor for key, tensor in state.items() if key not in ("logit_scale", "visual.proj")
    }
    contents = {
        "transformers": (layers, "layout of the transformers library.*open_clip_model.safetensors"),
        "prompts": (
            prompts,
            "holds no CLIP model: its tensors are ctx, token_prefix; prompts alone",
        ),
        "fewer": (fewer, "another architecture: it lacks .*logit_scale"),
        "objects": (
            {**state, "args": Anything()},
            "Python objects.*torch.save\\(model.state_dict\\(\\), FILE\\)",
        ),
    }
    for name, (content, said) in contents.items():
        torch.save(content, folder / f"{name}.pt")
        yield folder / f"{name}.pt", said
    (folder / "rubbish.pt").write_bytes(b"<html>not found</html>")
    yield folder / "rubbish.pt", "it cannot be read .*fetch it again"


@pytest.mark.filterwarnings("ignore:.*does not say its activation")
def test_each_file_that_does_not_fit_says_why(model, tmp_path):
    for file, said in files_that_do_not_fit(model, tmp_path):
        with pytest.raises(FedPGPError, match=f"{file} cannot be loaded into Mini: .*{said}"):
            load_clip("Mini", str(file))


@pytest.mark.filterwarnings("ignore:.*does not say its activation")
def test_weights_of_another_architecture_name_theirs(model, archive, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for file in (tmp_path / "weights.pt", archive):
        with pytest.raises(
            FedPGPError, match="those of another architecture: model.name=Mini or Mini-quickgelu"
        ):
            load_clip("Maxi-quickgelu", str(file))
    wider = {**model.state_dict(), "text_projection": torch.ones(64, 48)}
    torch.save(wider, tmp_path / "wider.pt")
    with pytest.raises(
        FedPGPError, match=r"text_projection is \(64, 48\) and should be \(64, 32\)"
    ):
        load_clip("Mini", str(tmp_path / "wider.pt"))
    words = {**model.state_dict(), "positional_embedding": torch.ones(77, 48)}
    torch.save(words, tmp_path / "words.pt")  # open_clip stops at it in an assertion
    with pytest.raises(FedPGPError, match=r"positional_embedding is \(77, 48\) and should be"):
        load_clip("Mini", str(tmp_path / "words.pt"))


def test_a_folder_of_transformers_says_what_to_take(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        FedPGPError, match="no open_clip_config.json .*transformers library's.*ViT-B-16.pt"
    ):
        load_clip(f"local-dir:{tmp_path}")


def test_the_only_architecture_with_a_tag_is_the_right_one(monkeypatch):
    """open_clip's roberta-ViT-B-32 has QuickGELU, its tag does not say so, and there is no other to
    take."""
    import huggingface_hub.constants

    from fedpgp.clip.weights import check_tag

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused = []
    for architecture, tag in open_clip.list_pretrained():
        try:
            check_tag(architecture, tag)
        except FedPGPError as error:
            refused.append((architecture, tag, str(error)))
    assert ("ViT-B-16", "openai") in {(architecture, tag) for architecture, tag, _ in refused}
    for _, tag, said in refused:
        other = said.rpartition("model.name=")[2]
        assert (other, tag) in open_clip.list_pretrained(), said
        check_tag(other, tag)
