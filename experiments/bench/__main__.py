"""``python -m experiments.bench WHAT``: measures this project against a plain
reference in the same process.

    step        one training step against the textbook step: full sequences, three passes, autograd
    methods     one training step of every method against what its own FLOPs say (--methods: of
                these)
    precision   one training step with bfloat16 products against the same in float32
    neighbours  one training step beside busy processes, one for each core, against one alone
    cohort      K clients in one tensor program against one alone
    growth      how a step's cost grows with classes, context length, clients and rank (--plot FILE
                draws it)
    features    image features: encoded once and kept, against encoded in every epoch
    federation  a round of the embedded federation against a loop over its clients; a whole run on
                Ray: overhead, memory
    clients     what a whole run costs with 100, 1,000 … clients that share made-up features:
                set-up, round, evaluation, resuming, memory, disk (--per-round: of each round)
    privacy     a round with privacy against one without, simulations in turn
    peers       PromptFL and FedPGP by this project, a plain Flower simulation and pfl-research: the
                same batches and prompts; clients a second, start-up, memory (--methods: of these)
    image_privacy
                a client's step with privacy=image against one without, and a loop over images
                (--methods: of these)

On a GPU, ``python -m experiments.bench.gpu`` measures in a few minutes all that it has to show.

Each row has the ratio of the medians, the achieved GFLOP/s, its fraction of this machine's measured
GEMM speed at the same shapes, and the peak memory that a call adds. Run it on an idle machine: a
busy core slows both sides, not always alike.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from experiments.bench import (
    clients,
    cohort,
    features,
    federation,
    growth,
    image_privacy,
    methods,
    neighbours,
    precision,
    privacy,
    step,
)
from experiments.bench.measure import machine
from experiments.bench.peers import compare
from experiments.command import command
from experiments.overrides import user_path
from fedpgp.atomic_files import check_target, write_atomically
from fedpgp.towers.attention import KINDS
from fedpgp.towers.cuda_graphs import Graphs
from fedpgp.towers.text import TextTower

BENCHES = {
    "step": step.rows,
    "methods": methods.rows,
    "precision": precision.rows,
    "neighbours": neighbours.rows,
    "cohort": cohort.rows,
    "growth": growth.rows,
    "features": features.rows,
    "federation": federation.rows,
    "clients": clients.rows,
    "privacy": privacy.rows,
    "peers": compare.rows,
    "image_privacy": image_privacy.rows,
}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=BENCHES, help="what to measure")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=methods.learning(),
        metavar="NAME",
        help="methods, peers: these, not all",
    )
    parser.add_argument(
        "--classes",
        type=int,
        nargs="+",
        default=[50, 100],
        help="numbers of classes (default 50 100)",
    )
    parser.add_argument(
        "--clients",
        type=_numbers,
        metavar="N[,N...]",
        help="clients (default: 10 of a cohort, else 24; clients: 100,1000,10000)",
    )
    parser.add_argument(
        "--per-round", type=int, default=100, help="clients: that train in a round (default 100)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="clients, peers: processes that train (default 2); 0: one, of this project inline",
    )
    parser.add_argument(
        "--images", type=int, default=512, help="features: images (default 512, at most 4550)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=10,
        help="federation, clients, privacy, peers: rounds of the whole run (default 10)",
    )
    parser.add_argument(
        "--model",
        help="model (default ViT-B-16 with random weights; of whole runs, features: tiny)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of matrix products"
    )
    parser.add_argument(
        "--attention", choices=KINDS, help="over a shared prefix (default: as the device has it)"
    )
    parser.add_argument("--eager", action="store_true", help="on a GPU: without CUDA graphs")
    parser.add_argument(
        "--repeats", type=int, default=5, help="counted calls of each, in turn (default 5)"
    )
    parser.add_argument(
        "--axes", nargs="+", choices=growth.AXES, help="growth: what varies (default: each in turn)"
    )
    parser.add_argument(
        "--plot",
        type=user_path,
        metavar="FILE",
        help="growth: draw the rows to FILE (.png, .svg); needs fedpgp[plots]",
    )
    parser.add_argument(
        "--json", type=user_path, metavar="FILE", help="write the rows and the machine to FILE"
    )
    options = parser.parse_args(arguments)
    if options.what != "clients" and options.clients is not None:
        if len(options.clients) > 1:
            parser.error("--clients takes several numbers with clients alone")
        (options.clients,) = options.clients
    _bench(options)
    return 0


def _numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(number) for number in text.split(",")]


def _bench(arguments: argparse.Namespace) -> None:
    for file in filter(None, (arguments.plot, arguments.json)):
        check_target(file)
    if arguments.plot:
        growth.check_plot()
    Graphs.enabled, TextTower.attention = not arguments.eager, arguments.attention
    found = []
    for row in BENCHES[arguments.what](arguments):
        found.append(row)
        shown = (
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in row.items()
        )
        print("  ".join(shown), flush=True)
    if arguments.plot and arguments.what == "growth":
        growth.plot(found, arguments.plot)
        print(f"wrote {arguments.plot}")
    if arguments.json:
        write_atomically(
            arguments.json,
            (json.dumps({"machine": machine(), "rows": found}, indent=2) + "\n").encode(),
        )
        print(f"wrote {arguments.json}")


if __name__ == "__main__":
    sys.exit(main())
