"""Image features of the embedded federation's training images, for ten epochs: encoded once and
kept in the cache, against encoded in every epoch, image by image through the model's
preprocessing, in batches of 32."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch

from experiments.bench.measure import gflop, in_turn, peak_memory
from fedpgp.clip import load_clip, resolve_device
from fedpgp.data import load_dataset
from fedpgp.data.base import Subset
from fedpgp.data.features import encode_split

EPOCHS, BATCH = 10, 32


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row: seconds of the first time, of every later time, and of the reference's epochs."""
    clip = load_clip(arguments.model or "tiny", None, resolve_device(arguments.device))
    whole = load_dataset("emoji").train
    split = Subset(whole, np.linspace(0, len(whole) - 1, arguments.images).astype(int))

    def epoch() -> torch.Tensor:
        parts = []
        for start in range(0, len(split), BATCH):
            chosen = range(start, min(start + BATCH, len(split)))
            parts.append(
                clip.encode_images(torch.stack([clip.preprocess(split.image(i)) for i in chosen]))
            )
        return torch.cat(parts)

    with tempfile.TemporaryDirectory() as folder:

        def ours(where: str = folder) -> np.ndarray:
            return encode_split(
                clip, split, cache_dir=where, dataset_name="emoji", split_name="bench"
            )

        def first() -> None:
            with tempfile.TemporaryDirectory() as fresh:
                ours(fresh)

        difference = float(np.abs(ours() - epoch().cpu().numpy()).max())
        encoding, each_epoch = in_turn(first, epoch, arguments.repeats)
        began = time.perf_counter()
        ours()
        later = time.perf_counter() - began
        once = statistics.median(encoding)
        yield {
            "bench": "features",
            "pictures": len(split),
            "epochs": EPOCHS,
            "first_ms": 1e3 * once,
            "later_ms": 1e3 * later,
            "reference_epoch_ms": 1e3 * statistics.median(each_epoch),
            "ratio": EPOCHS * statistics.median(each_epoch) / (once + (EPOCHS - 1) * later),
            "pictures_per_second": len(split) / once,
            "gflops": gflop(epoch) / once,
            "peak_mb": peak_memory(first),
            "largest_difference": difference,
        }
