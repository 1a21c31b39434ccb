"""Classifies pictures with a client's own prompt.

python -m experiments.predict --run outputs/default/TIME --client 3 IMAGE...
python -m experiments.predict --run RUN_DIR --client 0 --state STATE_DIR IMAGE...     where a deployed client lives
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from experiments.personal import Personal, add_options, load_asked
from experiments.run import BAD_INPUT
from fedpgp.data.base import FileSplit
from fedpgp.data.pictures import Reading
from fedpgp.errors import FedPGPError
from fedpgp.methods import Images

SHOWN = 3
"""Answers shown of each picture."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for bad input (pictures that can be read are answered)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.predict", description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("images", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    try:
        personal = load_asked(options)
    except FedPGPError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    pictures, unreadable = _read(options.images, Reading.of(personal.config["dataset"]))
    _say_what_answers(personal, options)
    answers = predict(personal, list(pictures.values())) if pictures else []
    for path, probability in zip(pictures, answers, strict=True):
        best = probability.topk(min(SHOWN, len(probability)))
        words = [
            f"{personal.classes.names[i]} {100 * p:.1f} %"
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        print(f"{path}: {', '.join(words)}")
    for reason in unreadable:
        print(f"error: {reason}", file=sys.stderr)
    return BAD_INPUT if unreadable else 0


def _read(paths: Sequence[Path], reading: Reading) -> tuple[dict[Path, Image.Image], list[str]]:
    """The pictures that can be read, and what is wrong with the others."""
    pictures, unreadable = {}, []
    for path in paths:
        try:
            pictures[path] = FileSplit(Path(), [str(path)], [0], reading=reading).image(0)
        except FedPGPError as error:
            unreadable.append(str(error).partition(";")[0])  # what follows is about data sets
    return pictures, unreadable


def _say_what_answers(personal: Personal, options: argparse.Namespace) -> None:
    """What somebody might not expect, on standard error."""
    client, clients = options.client, personal.config["clients"]
    if client >= clients:
        print(f"client {client} is none of the run's, 0 to {clients - 1}: the global prompt answers", file=sys.stderr)
    elif not personal.own:
        print(f"client {client} has no prompt of its own: the global one answers", file=sys.stderr)
    known, all_of_them = len(personal.classes.names), len(personal.federation.dataset.class_names)
    if known < all_of_them:
        print(f"among the {known} classes that were trained; --all-classes: among all {all_of_them}", file=sys.stderr)


@torch.no_grad()
def predict(personal: Personal, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Probability of each class for each picture, (pictures, classes)."""
    method, clip = personal.federation.method, personal.federation.method.task.clip
    pixels = torch.stack([clip.preprocess(picture) for picture in pictures])
    read = {what: pixels if what == "pixels" else clip.features_of(what, pixels) for what in method.reads}
    images = Images(**{what: x.to(method.task.device, method.task.dtype).unsqueeze(0) for what, x in read.items()})
    return method.logits(personal.features, images, personal.classes)[0].softmax(-1).cpu()


if __name__ == "__main__":
    sys.exit(main())
