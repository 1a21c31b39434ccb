"""The tiny text tower and inputs of tests/golden, as model and tensors."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fedpgp.clip import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.methods import StepContext

STEP = StepContext(server_round=1, step=0, clients=(0,), global_params={}, lr=0.1, seed=0)
"""For methods that need nothing of it."""

FOLDER = Path(__file__).parents[1] / "golden"


@cache
def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def golden_class_names() -> list[str]:
    with safe_open(FOLDER / "inputs.safetensors", "pt") as file:
        return json.loads(file.metadata()["class_names"])


@cache
def golden_clip() -> FrozenCLIP:
    """The text tower of the golden numbers in float64, with a random image tower."""
    CLIP = import_open_clip().model.CLIP

    inputs = golden("inputs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(
            embed_dim=16,
            vision_cfg={"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
            text_cfg={
                "context_length": 77,
                "vocab_size": 49408,
                "width": 32,
                "heads": 2,
                "layers": 2,
            },
            quick_gelu=True,
        ).double()
    state = {
        name.removeprefix("weights/"): tensor.double()
        for name, tensor in inputs.items()
        if name.startswith("weights/")
    }
    rows, ids = state.pop("token_embedding_rows"), inputs["weights/token_ids"]
    state.pop("token_ids")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(
        name.startswith(("visual.", "token_embedding")) for name in missing
    )
    with torch.no_grad():
        model.token_embedding.weight[ids] = rows
    return FrozenCLIP(model)
