"""What the other simulators' processes leave behind for the comparison."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

ROUNDS, PROMPTS = "rounds.jsonl", "prompts.safetensors"


def write_round(folder: Path, server_round: int, loss: float) -> None:
    """Add a line, when a round is over."""
    with (folder / ROUNDS).open("a") as file:
        file.write(json.dumps({"kind": "train", "round": server_round, "loss": loss}) + "\n")


def write_prompts(folder: Path, shared: Mapping[str, Tensor]) -> None:
    """Keep the global tensors, when training is over."""
    save_file({name: tensor.contiguous() for name, tensor in shared.items()}, folder / PROMPTS)


def read_prompts(folder: Path) -> dict[str, Tensor]:
    """Return what :func:`write_prompts` kept."""
    return load_file(folder / PROMPTS)
