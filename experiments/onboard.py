"""Gives a site that was not there a prompt from a finished federation, without training the others.

python -m experiments.onboard --run RUN --data DIR --state DIR
python -m experiments.onboard --run RUN --data DIR --state DIR --onboard finetune --budget 4
python -m experiments.predict --run RUN --newcomer --state DIR IMAGE...       then answers with it
"""

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from rich.console import Console as RichConsole

from clients.private_state import PrivateStore
from experiments.callbacks.progress import ProgressLine
from experiments.client_model import weights_of
from experiments.command import command
from experiments.newcomer_site import Site, keep_given, read_site
from experiments.overrides import user_path
from experiments.run_checks import open_checked
from experiments.run_folder import asked_run
from fedpgp.atomic_files import private_folder
from fedpgp.build import build_federation
from fedpgp.client_models import State
from fedpgp.errors import FedPGPError
from fedpgp.evaluation.metrics import accuracy
from fedpgp.federation import Federation
from fedpgp.onboarding import ONBOARDINGS, Newcomer, Onboarded, Onboarding, make_onboarding
from fedpgp.onboarding.base import onboarding_class
from fedpgp.onboarding.budget import make_newcomer
from fedpgp.onboarding.check import check_private_tensors
from fedpgp.onboarding.measure import logits
from fedpgp.onboarding.newcomers import Trained
from fedpgp.onboarding.share import descriptions, shared_terms
from fedpgp.plain_text import indented, written_out
from fedpgp.prefixes import strip_prefix
from fedpgp.protocols.onboarding_options import DESCRIPTIONS, OnboardingOptions
from strategies.checkpoint import OTHER_WEIGHTS, latest_checkpoint, same_model
from strategies.membership import admitted

WAY = "finetune"
"""What a newcomer gets where nobody says: a prompt of its own, for which it reveals nothing."""

NO_NOISE = (
    "its images were used without noise: what it keeps and exports is not covered by the run's "
    "privacy=image"
)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.onboard", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--run", type=user_path, required=True, help="the finished run's folder, or a copy of it")
    add(
        "--data",
        type=user_path,
        required=True,
        help="the site's own images: CLASS, or train/CLASS and test/CLASS",
    )
    add("--state", type=user_path, required=True, help="folder that keeps its prompt, for it alone")
    ways = ", ".join(sorted(ONBOARDINGS))
    add("--onboard", default=WAY, metavar="WAY", help=f"{ways} (docs/onboarding.md; %(default)s)")
    add("--budget", type=int, help="images of each class that it may use (all)")
    add("--steps", type=int, help="of its own training (those of the run's protocol, else 20)")
    add(
        "--description",
        choices=DESCRIPTIONS,
        help="what is told of the site, where the way compares it with trained clients",
    )
    add(
        "--weights",
        type=user_path,
        help="the model's weights file, where the run's path is not this machine's",
    )
    options = parser.parse_args(arguments)
    for line in onboard(options):
        print(line, flush=True)
    return 0


def onboard(options: argparse.Namespace) -> list[str]:
    """Give a site a prompt; return what is said of it.

    Args:
        options: of the command line.

    Raises:
        FedPGPError: a run, images or a way that cannot work.
    """
    run = asked_run(options.run)
    _, config = open_checked(run)
    chosen = _options(config, options)
    saved = latest_checkpoint(
        run / "checkpoint", lambda text: print(f"warning: {indented(text)}", file=sys.stderr)
    )
    if saved is None:
        raise FedPGPError(f"{run} has no checkpoint: the run saved nothing yet")
    tensors, info = saved
    if info.get("data") is None:
        raise FedPGPError(f"{run} was made before a run recorded its classes: nobody can join it")
    site = read_site(options.data, info["data"], config)
    folder = options.state / info["run"]
    private_folder(folder)
    private_folder(folder / "features")
    federation = _federation(config, site, options, folder)
    if not same_model(info, federation.method.task.clip.fingerprint):
        if options.weights:
            raise FedPGPError(
                f"--weights {options.weights}: the run was trained with other weights"
            )
        print(f"warning: {OTHER_WEIGHTS}", file=sys.stderr)
    check_private_tensors(federation, chosen)
    trained = _trained(run, config, federation, admitted(tensors, federation), info, chosen)
    way = make_onboarding(options.onboard, chosen, federation, trained)
    (budget,), (steps,) = chosen.budgets, chosen.steps_of
    newcomer = replace(make_newcomer(federation, site.client, budget, steps), labels=site.labels)
    (model,) = way.onboard([newcomer])
    about = {"client": newcomer.client, "round": max(1, info["round"]), "way": options.onboard}
    about |= {"images": len(newcomer.rows), "steps": newcomer.steps}
    keep_given(folder, info["run"], about, model)
    lines = _said(run, options, site, way, newcomer, model)
    if config["privacy"]["name"] == "image" and (way.fine_tunes or way.uses_images):
        lines.insert(1, NO_NOISE)
    return lines


def _options(config: Mapping, options: argparse.Namespace) -> OnboardingOptions:
    """The options of the way: of the command line, else of the run's protocol.

    Raises:
        FedPGPError: a value that cannot work.
    """
    known = {field.name for field in fields(OnboardingOptions)}
    given = {key: value for key, value in config["protocol"].items() if key in known}
    given |= {"onboard": options.onboard, "budget": options.budget}
    if options.description is not None:
        given["description"] = options.description
    steps = given.get("steps", OnboardingOptions.steps)
    steps = max(steps, default=0) if isinstance(steps, list | tuple) else steps
    given["steps"] = steps if options.steps is None else options.steps
    found = OnboardingOptions(**given)
    found.check_onboarding()
    onboarding_class(options.onboard, found)
    return found


def _federation(
    config: Mapping, site: Site, options: argparse.Namespace, folder: Path
) -> Federation:
    """The run's method and model, and the newcomer's images alone."""
    own = copy.deepcopy(dict(config))
    own["model"]["pretrained"] = weights_of(config["model"], options.weights)
    own["runtime"]["cache_dir"] = str(folder / "features")  # of its own images, nobody else's
    federation = build_federation(own, site.split)
    line = ProgressLine(RichConsole(stderr=True, highlight=False))
    federation.progress = line.progress
    try:
        federation.inputs.encode()
    finally:
        line.stop()
    return federation


def _trained(
    run: Path,
    config: Mapping,
    federation: Federation,
    tensors: Mapping[str, np.ndarray],
    info: Mapping,
    options: OnboardingOptions,
) -> Trained:
    """What the run has for newcomers; private tensors of its clients where they agreed."""
    shared, server_state = strip_prefix("shared/", tensors), strip_prefix("memory/", tensors)
    way = onboarding_class(options.ways[0], options)
    if not (way.needs_terms and config["method"].get("share_terms", False)):
        return Trained(shared, server_state)
    store = PrivateStore(run / "private", info["run"], 0)
    left = config.get("left", ())

    def load_state(client: int) -> State | None:
        return None if client in left else store.load(client, int(tensors["committed"][client]))

    terms = shared_terms(federation, load_state)
    described = {}
    if way.needs_description:  # of what they trained on
        described = descriptions(build_federation(config), terms, options.description)
        terms = {client: terms[client] for client in described}
    return Trained(shared, server_state, terms, described)


def _said(
    run: Path,
    options: argparse.Namespace,
    site: Site,
    way: Onboarding,
    newcomer: Newcomer,
    model: Onboarded,
) -> list[str]:
    federation = way.federation
    names = federation.dataset.class_names
    lines = [
        f"{options.onboard}: {len(newcomer.rows)} images of {len(site.labels)} of "
        f"{len(newcomer.classes)} trained classes"
    ]
    if site.left_out:
        lines.append(f"left out, as nobody trained these classes: {', '.join(site.left_out)}")
    if lacking := [names[i] for i in newcomer.classes if i not in site.labels]:
        lines.append(f"it has no image of {len(lacking)} trained classes, and knows them too")
    if model.bytes_up or model.bytes_down:
        lines.append(f"revealed {model.bytes_up:,} bytes, and was sent {model.bytes_down:,}")
    else:
        lines.append("revealed nothing")
    split = federation.federated_split.clients[newcomer.client]
    tested = split.eval_sets["unseen"]
    if len(tested.indices):
        labels = federation.inputs.labels("test", tested.classes)[tested.indices]
        found = {
            "global prompt": logits(way, newcomer, Onboarded(), tested),
            "its own": logits(way, newcomer, model, tested),
        }
        shown = ", ".join(f"{who} {accuracy(said, labels):.1f} %" for who, said in found.items())
        lines.append(f"accuracy on its {len(tested.indices)} test images: {shown}")
    state = written_out(options.state)
    lines.append(f"kept in {state}, for this user alone; it answers by:")
    command = f"python -m experiments.predict --run {run} --newcomer --state {state} IMAGE..."
    return [*lines, command]


if __name__ == "__main__":
    sys.exit(main())
