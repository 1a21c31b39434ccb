"""Writes a client's classifier for any user of open_clip: one text feature a class, and what
belongs to it.

    python -m experiments.export --run outputs/default/TIME --client 3 --to FOLDER

``FOLDER/classifier.safetensors`` holds ``class_embeddings``, (classes, embed) float32, unit norm;
``FOLDER/classifier.json`` the model's name and weights as open_clip has them, classes, template,
temperature, and how images were read.
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
from fedpgp.atomic_files import check_target, write_atomically
from fedpgp.clip.loading import resolve_name
from fedpgp.data.images import Reading
from fedpgp.errors import FedPGPError
from fedpgp.methods import Method
from fedpgp.plain_text import written_out


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
    export(from_arguments(options), options.to)
    to = written_out(options.to)
    print(f"wrote {to}/classifier.safetensors and {to}/classifier.json")
    return 0


def export(model: ClientModel, to: Path) -> None:
    """Write the two files.

    Raises:
        FedPGPError: a method whose models answer by more than one feature a class; no room to
            write.
    """
    method, task = model.federation.method, model.federation.method.task
    if type(method).logits is not Method.logits or not isinstance(model.classifier, torch.Tensor):
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


if __name__ == "__main__":
    sys.exit(main())
