"""Attacks a run's federation as it was configured, and says what it gives away.

python -m experiments.audit --run RUN_DIR
python -m experiments.audit --run RUN_DIR --only canaries images --json audit.json

canaries   clients that send a direction of their own, or nothing: a lower bound of epsilon
images     was an image trained on? from the global prompt, the client's updates, its own prompt
clients    did a client take part? from the global prompt
classes    which classes a client has, from one update
features   image features, rebuilt from one update

The run's federation is trained again, many times: with other images, clients or canaries each time.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console as RichConsole
from rich.table import Table

from experiments.auditing import PARTS, audit
from experiments.callbacks.progress import ProgressLine
from experiments.command import command
from experiments.overrides import user_path
from experiments.quiet import quiet
from experiments.run_folder import RunFolder, asked_run
from fedpgp.atomic_files import check_target
from fedpgp.plain_text import written_out

VIEWS = {
    "global": "the global prompt",
    "server": "its client's updates",
    "personal": "its client's own prompt",
}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        type=user_path,
        required=True,
        metavar="RUN_DIR",
        help="the folder of a finished simulation, or one above it: the newest run there",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="default: all parts")
    parser.add_argument(
        "--shadows", type=int, default=16, help="runs for images, and for clients (default: 16)"
    )
    parser.add_argument(
        "--canary-runs", type=int, default=10, help="runs with canaries (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the audit's coins (default: 0)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the figures")
    options = parser.parse_args(arguments)
    if options.json:
        check_target(options.json)
    quiet(False)
    line = ProgressLine(RichConsole(stderr=True, highlight=False))
    try:
        found = audit(
            asked_run(options.run),
            options.only or PARTS,
            shadows=options.shadows,
            canary_runs=options.canary_runs,
            seed=options.seed,
            progress=line.progress,
        )
    finally:
        line.stop()
    _print(found)
    if options.json:
        RunFolder(options.json.parent).json(options.json.name, found)
        print(f"wrote {written_out(options.json)}")
    return 0


def _print(found: dict) -> None:
    console = RichConsole(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("attack", "seen by the attacker", "figure", "a blind guess"):
        table.add_column(title)
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    for part, reason in found["left_out"].items():
        console.print(f"{part}: not tried, {reason}")
    console.print(_claimed(found["privacy"]))


def _claimed(claim: dict | None) -> str:
    """A sentence on the ``privacy`` of summary.json."""
    if claim is None:
        return "The run claims no differential privacy."
    if claim["epsilon"] is not None:
        return (
            f"The run claims epsilon {claim['epsilon']:.3g} at delta {claim['delta']:.3g}, of each "
            f"{claim['unit']}."
        )
    if claim["noise_multiplier"] == 0:
        return "The run claims no epsilon: it adds no noise."
    return "The run claims no epsilon: it adds noise whose epsilon is not accounted."


def _rows(found: dict) -> list[tuple[str, str, str, str]]:
    """The figures as text, a row each."""
    rows = []
    if bound := found.get("canaries"):
        said = f"epsilon at least {_bound(bound)}, {bound['right']} of {bound['guesses']} right"
        rows.append(("canaries", "all global prompts", said, "0"))
    for part in ("images", "clients"):
        for view, figures in found.get(part, {}).items():
            said = f"AUC {figures['auc']:.3f}, TPR {100 * figures['tpr']:.1f} % at FPR 1 %"
            said += f", epsilon at least {_bound(figures['bound'])}"
            rows.append((f"membership, {part}", VIEWS[view], said, "0.5, 1 %, 0"))
    if classes := found.get("classes"):
        rows.append(("classes of a client", "one update", f"AUC {classes['auc']:.3f}", "0.5"))
    for case, seen in (("update", "one update"), ("one_image", "an update of one image")):
        if figures := found.get("features", {}).get(case):
            said = f"cosine {figures['cosine']:.3f} to the nearest own image"
            rows.append(("image features", seen, said, f"{figures['guess']:.3f}"))
    return rows


def _bound(bound: dict) -> str:
    return f"{bound['epsilon']:.2f} ({100 * bound['confidence']:.0f} %)"


if __name__ == "__main__":
    sys.exit(main())
