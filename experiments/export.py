"""Writes a client's classifier for any user of open_clip: one text feature a class, and what
belongs to it.

    python -m experiments.export --run outputs/default/TIME --client 3 --to FOLDER

``FOLDER/classifier.safetensors`` holds ``class_embeddings``, (classes, embed) float32, unit norm;
``FOLDER/classifier.json`` the model's name and weights as open_clip has them, classes, template,
temperature, and how images were read. Of low-rank adapters in the text tower, peft's two files are
beside them (:mod:`experiments.peft_files`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from experiments.client_model import ClientModel, add_options, from_arguments
from experiments.command import command
from experiments.overrides import user_path
from experiments.peft_files import FILES as PEFT_FILES
from experiments.peft_files import write_peft
from fedpgp.atomic_files import check_target, write_atomically
from fedpgp.clip.conv_stem import read_stem
from fedpgp.clip.loading import resolve_name
from fedpgp.data.images import Reading
from fedpgp.errors import FedPGPError
from fedpgp.methods.lora import LoRA, of_tower
from fedpgp.plain_text import written_out

FILES = ("classifier.safetensors", "classifier.json")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export", description=__doc__.splitlines()[0]
    )
    add_options(parser)
    parser.add_argument("--to", type=user_path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    check_target(options.to / "classifier.json")
    files = export(from_arguments(options), options.to)
    to = written_out(options.to)
    print("wrote " + " and ".join(f"{to}/{name}" for name in files))
    return 0


def export(model: ClientModel, to: Path) -> tuple[str, ...]:
    """Write the files; return their names.

    Raises:
        FedPGPError: a method whose models answer by more than one feature a class; no room to
            write.
    """
    method, task = model.federation.method, model.federation.method.task
    if not method.answers_by_cosine or not isinstance(model.classifier, torch.Tensor):
        raise FedPGPError(
            f"method={method.name} answers by more than one feature a class: it cannot be exported"
        )
    if model.adjust is not None:
        raise FedPGPError(
            "this newcomer answers by the features of its images beside the global prompt: it "
            "cannot be exported; experiments.onboard --onboard finetune gives it a prompt"
        )
    config, dataset = model.config, model.federation.dataset
    architecture, pretrained = resolve_name(
        config["model"]["name"], config["model"].get("pretrained")
    )
    about = {
        "model": architecture,
        "pretrained": pretrained,
        "model_sha256": task.clip.fingerprint,
        "classes": model.class_names,
        "template": dataset.template
        if isinstance(dataset.template, str)
        else [dataset.template[i] for i in model.classes.ids],
        "pictures": Reading.of(config["dataset"]).record(),
        "temperature": 1 / task.logit_scale,
        "method": method.name,
        "client": model.client,
        "own_prompt": model.has_own_prompt,
        "round": model.server_round,
    }
    embeddings = model.classifier[0].float().cpu().contiguous()
    write_atomically(to / "classifier.safetensors", save({"class_embeddings": embeddings}))
    write_atomically(to / "classifier.json", (json.dumps(about, indent=1) + "\n").encode())
    _, local, folder = architecture.partition("local-dir:")
    if local and read_stem(Path(folder)) is not None:
        print(
            f"note: open_clip alone does not load model {config['model']['name']}, whose image "
            "tower stands on a convolutional stem; fedpgp.clip.load_clip does",
            file=sys.stderr,
        )
    if not isinstance(method, LoRA):
        return FILES
    adapters = method.adapters(model.params, *(method.private if model.has_own_prompt else ()))
    tensors, dense = of_tower("text", adapters)
    gated = any(name.endswith(".G") for name in tensors)
    if dense or gated:
        why = (
            "each token weighs its adapters"
            if gated
            else "what is added to the weights is of full rank"
        )
        print(
            f"note: of method={method.name} no adapter is written for peft: {why}",
            file=sys.stderr,
        )
        return FILES
    first = method.placements["text"].first
    write_peft({name: t[0] for name, t in tensors.items()}, first, (architecture, pretrained), to)
    return FILES + PEFT_FILES


if __name__ == "__main__":
    sys.exit(main())
