"""Pretrains the small CLIP models of the embedded federation on 2 CPU cores; each stage
resumes where it stopped.

    python -m tools.embedded.pretrain image --minutes 60      # image tower of `tiny`, from labels
    python -m tools.embedded.pretrain image --minutes 60 --start FOLDER     # … from a finished one
    python -m tools.embedded.pretrain text --minutes 5        # text tower on it; writes tiny
    python -m tools.embedded.pretrain distill --minutes 34    # a ViT it teaches; writes tiny_vit

Why two stages for `tiny`: the image tower learns all that is known of an image (which emoji it is,
its Unicode subgroup, the words of its names and tags), so that its features are strong. The text
tower then learns from names and tags and hardly ever from class names, so that zero-shot
classification leaves something for a prompt to learn, as it does with CLIP on real data.

One style, `emojione-v1`, is kept out of training and only watched. No image of the
federation is used here.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # spinning threads collapse when something else uses the other core

import torch

from tools.embedded import sources as src
from tools.embedded.distill import train_vit
from tools.embedded.image_tower import LEARNING_RATE, train_image
from tools.embedded.models import ASSETS
from tools.embedded.text_tower import CLASS_FRACTION, train_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("image", "text", "distill"))
    parser.add_argument(
        "--minutes",
        type=float,
        required=True,
        help="time budget of the stage, over all its sessions",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--name",
        default="tiny",
        help="folder for checkpoints inside the work folder (default %(default)s)",
    )
    parser.add_argument(
        "--class-fraction",
        type=float,
        default=CLASS_FRACTION,
        help="captions that name a class (default %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="image stage: one image size for this session instead of growing ones",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=LEARNING_RATE,
        help="image stage: peak rate (default %(default)s)",
    )
    parser.add_argument(
        "--start", type=Path, help="image: folder of a finished model to begin from"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="text: the image tower's last weights, not their average",
    )
    parser.add_argument(
        "--to", type=Path, help="folder of the model (default: fedpgp/assets/tiny or tiny_vit)"
    )
    parser.add_argument(
        "--work", type=Path, default=src.DEFAULT_WORK, help="work folder (default %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "image":
        train_image(
            arguments.work,
            arguments.minutes,
            arguments.seed,
            arguments.name,
            arguments.size,
            arguments.rate,
            arguments.start,
        )
    elif arguments.stage == "text":
        target = arguments.to or ASSETS / "tiny"
        train_text(
            arguments.work,
            arguments.minutes,
            arguments.seed,
            arguments.name,
            arguments.raw,
            arguments.class_fraction,
            target,
        )
    else:
        target = arguments.to or ASSETS / "tiny_vit"
        train_vit(
            arguments.work,
            arguments.minutes,
            arguments.seed,
            arguments.name,
            ASSETS / "tiny",
            target,
        )


if __name__ == "__main__":
    main()
