"""Every model of open_clip's list, made small: whether it can be prompted, and whether a
prompt stands where it should.

Models of the same kind (what is left of their configurations without sizes) are tried once.
"""

import json
import sys
from functools import cache
from pathlib import Path

import pytest
from torch.testing import assert_close

from experiments.runner import start
from experiments.settings import composed
from fedpgp.clip import has_plain_text, load_clip
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError
from fedpgp.text import PromptedTextEncoder
from tests.helpers.tokenizers import KINDS, TOWERS, save_text_config, save_tokenizer

open_clip = import_open_clip()

NAMES = ["cat", "golden retriever", "tree"]
WIDTH = 32


def small(config: dict) -> dict:
    """A configuration of open_clip's with its kind of text tower, and sizes of next to nothing."""
    text = dict(config["text_cfg"])
    if "hf_model_name" not in text:
        text |= {"width": WIDTH, "heads": 2, "layers": 2}
    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
    made = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}
    made |= {
        key: config[key]
        for key in ("custom_text", "quick_gelu", "init_logit_bias")
        if key in config
    }
    if "multimodal_cfg" in config:
        made["multimodal_cfg"] = {"context_length": 76, "width": WIDTH, "heads": 2, "layers": 1}
        made["vision_cfg"] |= {"output_tokens": True}
    return made


@cache
def kinds() -> dict[str, str]:
    """The first model of each kind -> its small configuration, as text; its tokenizer by
    the name of its kind."""
    found: dict[str, str] = {}
    for name in open_clip.list_models():
        config = small(open_clip.get_model_config(name))
        for size in ("vocab_size", "mlp_ratio"):
            config["text_cfg"].pop(size, None)
        if wanted := config["text_cfg"].get("hf_tokenizer_name"):
            config["text_cfg"]["hf_tokenizer_name"] = next(
                kind for kind in KINDS if kind in wanted.lower()
            )
        if model := config["text_cfg"].get("hf_model_name"):
            config["text_cfg"]["hf_model_name"] = next(kind for kind in TOWERS if kind in model)
        found.setdefault(json.dumps(config, sort_keys=True), name)
    return {name: config for config, name in found.items()}


def saved(name: str, folder: Path, tokenizer: str = "its own") -> str:
    """A folder with a small model of a kind and its tokenizer, or another; its name
    for :func:`load_clip`."""
    config = json.loads(kinds()[name])
    text = config["text_cfg"]
    text["vocab_size"] = 49408
    if tokenizer == "CLIP's":
        del text["hf_tokenizer_name"]
    elif "hf_tokenizer_name" in text:
        pytest.importorskip("transformers")
        text["vocab_size"] = save_tokenizer(text["hf_tokenizer_name"], folder)
    if "hf_model_name" in text:
        save_text_config(text["hf_model_name"], folder, text["vocab_size"])
        text["hf_model_name"] = str(folder)
        text["hf_proj_type"] = text.get("hf_proj_type") or "linear"
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return f"local-dir:{folder}"


CASES = [(name, "its own") for name in kinds()] + [("ViT-B-16-SigLIP", "CLIP's")]


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
@pytest.mark.parametrize(("name", "tokenizer"), CASES)
def test_a_prompt_with_a_phrases_tokens_is_the_sentence(name, tokenizer, tmp_path):
    """The context is the token embeddings of a phrase: then the feature is the model's own of the
    whole sentence, with the class name at the end of it, in the middle and in front."""
    clip = load_clip(saved(name, tmp_path, tokenizer), "random")
    phrase = clip.embed_phrase("a photo of a")
    front, back = (
        clip.token_ids("a photo"),
        clip.token_ids("x of a")[1:],
    )  # a first word may have other tokens
    behind = clip.token_ids("x a photo of a")[1:]
    cases = {
        "end": (phrase, "a photo of a {}."),
        "middle": (clip.embed_tokens([*front, *back]), "a photo {} of a."),
        "front": (clip.embed_tokens(behind), "{} a photo of a."),
    }
    if len(front) != len(
        back
    ):  # a tokenizer that splits these words unevenly cannot show the middle by them
        del cases["middle"]
    for position, (context, sentence) in cases.items():
        encoder = PromptedTextEncoder(clip, NAMES, len(context), position=position)
        expected = clip.encode_texts([sentence.format(class_name) for class_name in NAMES])
        assert_close(encoder(context), expected, rtol=1e-4, atol=1e-5)
    context = (phrase + 0.01).requires_grad_()
    encoder = PromptedTextEncoder(clip, NAMES, len(phrase))
    text = json.loads(kinds()[name])["text_cfg"]
    as_clip = not {"hf_tokenizer_name", "hf_model_name", "embed_cls"} & set(text) and not text.get(
        "no_causal_mask"
    )
    assert (encoder.path == "shared prefix") == as_clip  # what docs/models.md says of each kind
    assert has_plain_text(f"local-dir:{tmp_path}") == as_clip  # and dtype=auto goes by
    assert has_plain_text(name) == as_clip
    encoder(context).sum().backward()
    assert context.grad.abs().sum(-1).gt(0).all() and encoder(context).shape == (len(NAMES), WIDTH)
    with pytest.raises(
        FedPGPError, match="class name 'cat cat .*' has .* tokens.* shorten the name or n_ctx"
    ):
        PromptedTextEncoder(clip, ["tree", "cat " * clip.context_length], 4)


@pytest.mark.filterwarnings("ignore:.*RANDOM weights")
def test_a_prompt_that_just_fits_is_not_refused(tmp_path):
    """CLIP's own tokenizer cuts in silence: one token more and the last word would be gone."""
    clip = load_clip(saved("ViT-B-16-SigLIP", tmp_path, "CLIP's"), "random")
    room = clip.context_length - 2 - 4  # start, end, context; this tokenizer drops the full stop
    assert PromptedTextEncoder(clip, ["cat " * room], 4).tokens == clip.context_length
    with pytest.raises(FedPGPError, match=f"has {room + 1} tokens; beside 4 context tokens"):
        PromptedTextEncoder(clip, ["cat " * (room + 1)], 4)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "roberta-ViT-B-32"])
def test_a_federation_learns_prompts_of_such_a_model(name, tmp_path):
    model = [f"model.name={saved(name, tmp_path)}", "model.pretrained=random", "device=cpu"]
    words = [
        "dataset.domains=[noto]",
        "partition=dirichlet",
        "clients=2",
        "shots=1",
        "n_ctx=null",
        "rounds=1",
    ]
    words += [
        "context_init='a photo of a'",
        "local_epochs=1",
        "runtime=inline",
        "evaluate_every=0",
        "method=fedpgp",
    ]
    summary = start(
        composed(
            [*model, *words, f"run_dir={tmp_path / 'run'}", f"runtime.cache_dir={tmp_path / 'c'}"]
        )
    )
    assert summary["status"] == "finished" and summary["accuracy"]["personal"]["local"] is not None


def test_what_is_missing_is_said_with_where_it_comes_from(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformers", None)
        with pytest.raises(
            FedPGPError, match=r"pip install 'fedpgp\[hf\]', and have the files of roberta-base in"
        ):
            load_clip("roberta-ViT-B-32", "laion2b_s12b_b32k")
    pytest.importorskip("transformers")
    with pytest.raises(
        FedPGPError, match="its tokenizer cannot be read.*hf download timm/ViT-B-16-SigLIP2"
    ):
        load_clip("ViT-B-16-SigLIP2", "webli")
    with pytest.raises(FedPGPError, match="model hf-hub:nobody/nothing: .*hf download nobody/noth"):
        load_clip("hf-hub:nobody/nothing")
    with pytest.raises(
        FedPGPError, match=f"tokenizer.json and tokenizer_config.json in {tmp_path}"
    ):
        folder = saved("ViT-B-16-SigLIP2", tmp_path)
        for file in tmp_path.glob("tokenizer*"):
            file.unlink()
        load_clip(folder, "random")
