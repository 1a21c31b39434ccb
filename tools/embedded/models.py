"""The two small CLIP models: their configurations, their files, and the features of the image
tower."""

import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fedpgp.clip.torchvision_fix import import_open_clip
from tools.embedded import sources as src
from tools.embedded.images import MEAN, STD, autocast, plain

open_clip = import_open_clip()

ASSETS = src.HERE.parents[1] / "fedpgp" / "assets"
EMBED_DIM = 256
TEXT_CFG = {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4}
TINY_CFG = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {
        "timm_model_name": "regnetx_002",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 128,
    },
    "text_cfg": TEXT_CFG,
}
TINY_VIT_CFG = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 5, "width": 192, "head_width": 64, "patch_size": 16},
    "text_cfg": TEXT_CFG,
}
CONV_STEM = {"network": "regnetx_002", "last": "s4.b1", "enlarge": 2}


def new_clip(config: dict) -> torch.nn.Module:
    """The untrained open_clip model that `config` describes."""
    vision = dict(config["vision_cfg"])
    return open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=vision,
        text_cfg=dict(config["text_cfg"]),
        quick_gelu=config["quick_gelu"],
    )


@torch.no_grad()
def encode(
    visual: torch.nn.Module, images: np.ndarray, size: int, batch: int = 256
) -> torch.Tensor:
    """Unit-length features (N, D) of (N, 64, 64, 3) uint8 images, in evaluation mode, float32."""
    training = visual.training
    visual.eval()
    parts = []
    for start in range(0, len(images), batch):
        with autocast():
            features = visual(plain(torch.from_numpy(images[start : start + batch]), size))
        parts.append(F.normalize(features.float(), dim=-1))
    visual.train(training)
    return torch.cat(parts)


def finished_image_tower(folder: Path) -> dict[str, torch.Tensor]:
    """The image tower's weights of a model that :func:`write_model` wrote, in float32."""
    return {
        key.removeprefix("visual."): value.float() if value.dtype.is_floating_point else value
        for key, value in load_file(folder / "open_clip_model.safetensors").items()
        if key.startswith("visual.")
    }


def load_image_tower(work: Path, name: str, raw: bool) -> tuple[torch.nn.Module, dict]:
    """The image tower of stage 1 in evaluation mode, averaged or (raw) as last
    trained, and its checkpoint."""
    state = torch.load(work / name / "image.pt", weights_only=True)
    if raw:
        state["average"] = state["visual"]
    model = new_clip(TINY_CFG)
    model.visual.load_state_dict(state["average"])
    return model.visual.to(memory_format=torch.channels_last).eval(), state


def write_model(
    folder: Path, config: dict, model: torch.nn.Module, conv_stem: dict | None = None
) -> None:
    """Writes open_clip's own format: `open_clip_config.json` and half-precision
    `open_clip_model.safetensors`; with a stem, which only this project's loader puts there."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "mean": list(MEAN),
        "std": list(STD),
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    }
    stem = {} if conv_stem is None else {"conv_stem": conv_stem}
    whole = {"model_cfg": config, **stem, "preprocess_cfg": preprocess}
    text = json.dumps(whole, indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n", encoding="utf-8")
    state = {
        key: (value.half() if value.dtype.is_floating_point else value).contiguous()
        for key, value in model.state_dict().items()
    }
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError("a weight does not fit half precision")
    temporary = folder / "open_clip_model.tmp"
    save_file(state, temporary)
    temporary.chmod(0o644)  # safetensors makes it private to its owner
    os.replace(temporary, folder / "open_clip_model.safetensors")
