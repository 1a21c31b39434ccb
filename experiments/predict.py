"""Classifies images with a client's own prompt.

python -m experiments.predict --run outputs/default/TIME --client 3 IMAGE...
python -m experiments.predict --run RUN_DIR --global IMAGE...       with the global prompt
python -m experiments.predict --run RUN_DIR --client 0 --state STATE_DIR IMAGE...
                                                                    where a deployed client lives
python -m experiments.predict --run RUN_DIR --newcomer --state STATE_DIR IMAGE...
                                                                    after experiments.onboard
python -m experiments.predict --run RUN_DIR --client 3 --csv answers.csv FOLDER
                                                                    all images of a folder
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console as RichConsole

from experiments.callbacks.progress import ProgressLine
from experiments.client_model import ClientModel, add_options, from_arguments
from experiments.command import BAD_INPUT, command, complain
from experiments.overrides import user_path
from experiments.predictions import STANDARD_OUTPUT, as_csv, as_json, write
from fedpgp.atomic_files import check_target
from fedpgp.data.base import FileSplit
from fedpgp.data.features import images_per_chunk
from fedpgp.data.files import image_files
from fedpgp.data.images import Reading
from fedpgp.errors import FedPGPError
from fedpgp.methods import Images
from fedpgp.plain_text import one_line, written_out

SHOWN = 3
"""Answers shown of each image."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for bad input (images that can
    be read are answered)."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.predict", description=__doc__.splitlines()[0]
    )
    add_options(parser)
    parser.add_argument(
        "images", nargs="+", type=user_path, help="files, or folders: all images in them"
    )
    to = parser.add_mutually_exclusive_group()
    for kind in ("json", "csv"):
        to.add_argument(
            f"--{kind}",
            type=user_path,
            metavar="FILE",
            help=f"every class's probability as {kind.upper()}, in place of the lines; -: to "
            "standard output",
        )
    options = parser.parse_args(arguments)
    target, unreadable = options.json or options.csv, []
    line = ProgressLine(RichConsole(stderr=True, highlight=False), redirect=False)
    try:
        if target and target != STANDARD_OUTPUT:
            check_target(target)
        paths = images_of(options.images)
        model, answers = from_arguments(options), []
        for number, (path, answer) in enumerate(classified(model, paths), start=1):
            if isinstance(answer, str):
                unreadable.append(answer)
            if target:
                answers.append((path, answer))
            elif not isinstance(answer, str):
                line.stop()  # both may go to the same terminal
                print(
                    f"{written_out(path)}: {one_line(_in_words(answer, model.class_names))}",
                    flush=True,
                )
            line.progress(number, len(paths), "images")
        if target:
            line.stop()
            write((as_json if options.json else as_csv)(model, answers), target)
    except FedPGPError as error:
        unreadable.append(str(error))
    finally:
        line.stop()
    for reason in unreadable:
        complain(reason)
    return BAD_INPUT if unreadable else 0


def images_of(given: Sequence[Path]) -> list[Path]:
    """Return files, and in the place of a folder all images in it and below it, by name; hidden
    ones are left out.

    Raises:
        FedPGPError: a folder without an image.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [
            path / folder / name
            for folder in sorted(
                Path(root).relative_to(path)
                for root, _, _ in os.walk(path)
                if not any(part.startswith(".") for part in Path(root).relative_to(path).parts)
            )
            for name in image_files(path / folder)
        ]
        if not inside:
            raise FedPGPError(f"the folder {written_out(path)} has no image")
        found += inside
    return found


def classified(
    model: ClientModel, paths: Sequence[Path]
) -> Iterator[tuple[Path, torch.Tensor | str]]:
    """Each image with the probability of each class, (classes,), or why it cannot be read.
    In batches, which begin with one image: the first answers are there soon, and no more
    than a batch is held."""
    most, reading = (
        images_per_chunk(model.federation.method.task.device),
        Reading.of(model.config["dataset"]),
    )
    start, size = 0, 1
    while start < len(paths):
        batch = paths[start : start + size]
        reasons: dict[int, str] = {}
        answers = iter(predict(model, _opened(batch, reading, reasons)))
        for i, path in enumerate(batch):
            yield path, reasons[i] if i in reasons else next(answers)
        start, size = start + size, min(most, 2 * size)


def _opened(
    paths: Sequence[Path], reading: Reading, reasons: dict[int, str]
) -> Iterator[Image.Image]:
    """The images that can be read; of the others why not, by their number."""
    for i, path in enumerate(paths):
        try:
            yield FileSplit(Path(), [str(path)], [0], reading=reading).image(0)
        except FedPGPError as error:
            reasons[i] = str(error).partition(";")[0]  # what follows is about data sets


def _in_words(probability: torch.Tensor, names: Sequence[str]) -> str:
    best = probability.topk(min(SHOWN, len(probability)))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return ", ".join(f"{names[i]} {100 * p:.1f} %" for p, i in pairs)


def predict(model: ClientModel, images: Iterable[Image.Image]) -> torch.Tensor:
    """Return the probability of each class for each image, (images, classes); each image is let go
    when it is prepared."""
    pixels = [prepared(model, image) for image in images]
    if not pixels:
        return torch.empty(0, len(model.classes.names))
    return answered(model, torch.stack(pixels))


def prepared(model: ClientModel, image: Image.Image) -> torch.Tensor:
    """Return what the model reads of an image, (3, R, R)."""
    return model.federation.method.task.clip.preprocess(image)


@torch.no_grad()
def answered(model: ClientModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return the probability of each class for each prepared image.

    Args:
        pixels: (images, 3, R, R), one image at least.

    Returns:
        (images, classes), on the CPU.
    """
    method, clip = model.federation.method, model.federation.method.task.clip
    read = {
        what: pixels if what == "pixels" else clip.features_of(what, pixels)
        for what in {*method.inputs, *(("features",) if model.adjust else ())}
    }
    images = Images(
        **{
            what: x.to(method.task.device, method.task.dtype).unsqueeze(0)
            for what, x in read.items()
        }
    )
    logits = method.logits(model.classifier, images, model.classes)[0]
    if model.adjust is not None:
        logits = model.adjust(logits, images.features[0])
    return logits.softmax(-1).cpu()


if __name__ == "__main__":
    sys.exit(main())
