"""Models with random weights in the files that people have."""

import copy
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from fedpgp.clip.torchvision_fix import import_open_clip

open_clip = import_open_clip()


class AsOpenAI(nn.Module):
    """A module with the tensors, names and half precision of OpenAI's archives: openai/CLIP
    ea41722, clip/model.py, ``convert_weights`` (half of it is half precision) and ``build_model``
    (input_resolution, context_length and vocab_size stand among the weights)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        half = copy.deepcopy(model)
        open_clip.model.convert_weights_to_fp16(half)
        for name, tensor in half.state_dict().items():
            self._put(name, tensor)
        numbers = {"input_resolution": 16, "context_length": 77, "vocab_size": 49408}
        for name, number in numbers.items():
            self.register_buffer(name, torch.tensor(number))

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        at: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        at.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.logit_scale


def save_archive(model: nn.Module, file: Path) -> Path:
    """Write a model as OpenAI's TorchScript archives hold theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(AsOpenAI(model), torch.ones(1)).save(str(file))
    return file


def save_folder(model: nn.Module, config: dict, folder: Path) -> Path:
    """Write a model as open_clip's folders hold theirs: configuration and safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
