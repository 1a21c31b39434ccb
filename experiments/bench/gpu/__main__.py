"""``python -m experiments.bench.gpu --out FOLDER``: all that a GPU has to show, in one run of a few
minutes.

    peak       the speed of a large matrix product in each precision
    step       a training step of FedPGP with each attention: milliseconds a client, share of the
               products' speed, the part of it in which no kernel runs; one client against the
               textbook step
    attention  over a shared prefix alone, forward and backward: padded, packed and by Triton
    tests      those marked gpu
    tiles      Triton's attention with other tiles
    methods    a step of other methods: with what is recorded by default and with all that can be

Rows go to FOLDER/gpu.json and FOLDER/gpu.md after each of them, so that a run that is cut off
leaves what it has. It needs torch and open_clip alone (and pytest for the tests), so it runs where
the rest of the project is not installed. Passes are recorded as in training (CUDA graphs).

With --device cpu and small sizes the same code runs without a GPU; with TRITON_INTERPRET=1 Triton's
kernels too.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from experiments.bench import methods
from experiments.bench.gpu.parts import COMPUTE, PARTS, TIMED
from experiments.bench.gpu.record import Record
from experiments.bench.step import MODEL
from experiments.command import command
from fedpgp.atomic_files import check_target
from fedpgp.clip import resolve_device
from fedpgp.towers.attention import KINDS


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the results")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the command")
    parser.add_argument("--model", default=MODEL, help=f"default {MODEL}, with random weights")
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 100, 1000])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--dtypes", nargs="+", default=list(COMPUTE), choices=COMPUTE)
    parser.add_argument("--attention", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--methods", nargs="*", default=TIMED, choices=methods.learning())
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument(
        "--repeats", type=int, default=20, help="counted calls of each (default 20)"
    )
    parser.add_argument(
        "--seconds", type=float, default=330, help="after which nothing new begins (default 330)"
    )
    options = parser.parse_args(arguments)
    options.device = resolve_device(options.device)
    files = options.out / "gpu.json", options.out / "gpu.md"
    for file in files:
        check_target(file)
    if options.model != MODEL or options.device.type != "cuda":
        print("note: not the sizes or the device that the results are for", flush=True)
    record = Record(*files)
    for part in options.parts:
        _run(record, PARTS[part], options)
    print(f"wrote {files[0]} and {files[1]}")
    return 0


def _run(record: Record, part: Callable, options: argparse.Namespace) -> None:
    """Add the rows of a part. A case that fails has its error in its row: the time on a GPU is
    short, and the other cases still count."""
    for case, measure in part(options):
        if record.seconds > options.seconds:
            record.add(case | {"left_out": f"{options.seconds:.0f} s were over"})
            continue
        try:
            record.add(case | measure())
        except Exception as error:  # ours, CUDA's, a compiler's
            record.add(case | {"error": f"{type(error).__name__}: {str(error)[:300]}"})
        gc.collect()  # class sets and their task hold each other, and recordings hold memory
        if options.device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
