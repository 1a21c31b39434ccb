"""Low-rank adapters as peft reads them: ``adapter_config.json`` and ``adapter_model.safetensors``,
for the text tower of transformers' ``CLIPModel`` and ``CLIPTextModelWithProjection``.

Names and layout: docs/source/developer_guides/checkpoint.md of huggingface/peft at 5d602fd.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from fedpgp.atomic_files import write_atomically

MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "fc": "mlp.fc1",
    "proj": "mlp.fc2",
}
"""A layer with adapters -> its module inside a block of transformers' text tower."""
BLOCK = "text_model.encoder.layers.{}"
"""A block of that tower."""
SAME_WEIGHTS = {
    ("ViT-B-16", "openai"): "openai/clip-vit-base-patch16",
    ("ViT-B-32", "openai"): "openai/clip-vit-base-patch32",
    ("ViT-L-14", "openai"): "openai/clip-vit-large-patch14",
    ("ViT-L-14-336", "openai"): "openai/clip-vit-large-patch14-336",
}
"""Model and weights as open_clip names them -> the same as transformers does."""
FILES = ("adapter_config.json", "adapter_model.safetensors")


def write_peft(
    adapters: Mapping[str, Tensor], first: int, model: tuple[str, str | None], to: Path
) -> None:
    """Write the two files.

    Args:
        adapters: ``"LAYER.A"`` (L, b, in) and ``"LAYER.B"`` (L, out, b); B holds LoRA's factor, so
            that alpha is b here.
        first: the first of the L blocks.
        model: name and weights, as open_clip has them.
        to: the folder.
    """
    tensors: dict[str, Tensor] = {}
    modules = []
    for layer in dict.fromkeys(name.split(".")[0] for name in adapters):
        modules.append(MODULES[layer])
        for part in "AB":
            for i, tensor in enumerate(adapters[f"{layer}.{part}"]):
                module = f"{BLOCK.format(first + i)}.{MODULES[layer]}"
                key = f"base_model.model.{module}.lora_{part}.weight"
                tensors[key] = tensor.float().cpu().contiguous()
    count, rank = adapters[f"{layer}.A"].shape[:2]
    numbers = "|".join(str(first + i) for i in range(count))
    names = "|".join(module.replace(".", r"\.") for module in modules)
    pattern = BLOCK.replace(".", r"\.").format(f"({numbers})")
    architecture, pretrained = model
    name = architecture.removesuffix("-quickgelu")  # transformers' have it too
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": SAME_WEIGHTS.get((name, pretrained)),
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "modules_to_save": None,
        "target_modules": rf"{pattern}\.({names})",
    }
    write_atomically(to / FILES[0], (json.dumps(config, indent=1) + "\n").encode())
    write_atomically(to / FILES[1], save(tensors, {"format": "pt"}))
