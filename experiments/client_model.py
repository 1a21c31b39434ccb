"""A client's own classifier, from the folder of a run."""

import argparse
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console as RichConsole

from clients.private_state import PrivateStore
from experiments.asked_client import asked_client
from experiments.callbacks.progress import ProgressLine
from experiments.newcomer_site import given_to, with_newcomer
from experiments.overrides import user_path
from experiments.run_checks import open_checked
from experiments.run_folder import asked_run
from fedpgp.build import build_federation
from fedpgp.client_models import NeedsImages
from fedpgp.data.class_names import told_apart
from fedpgp.data_record import check_same_data, data_record, recorded_split
from fedpgp.digests import tensor_digest
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation, Progress
from fedpgp.methods import Classifier, Params
from fedpgp.onboarding.newcomers import Adjust
from fedpgp.plain_text import indented
from fedpgp.prefixes import strip_prefix
from fedpgp.task import ClassSet
from strategies.checkpoint import OTHER_WEIGHTS, check_fits, latest_checkpoint, same_model
from strategies.membership import admitted


@dataclass(frozen=True)
class ClientModel:
    """What a client answers with.

    Attributes:
        run: its id.
        config: of the run.
        federation: of the run; without images, unless the method makes a client's model from them.
        classifier: of the client's model, with a client axis of one.
        classes: what it chooses among.
        server_round: the round of the global tensors.
        client: logical client; None where the global model was asked for.
        has_own_prompt: False where the client has no tensors of its own: its model is the global
            one.
        params: all tensors of the model, each with a client axis of one.
        adjust: what changes its logits, for a newcomer that was given no prompt alone
            (:mod:`fedpgp.onboarding`); None: nothing does.
    """

    run: str
    config: dict
    federation: Federation
    classifier: Classifier
    classes: ClassSet
    server_round: int
    client: int | None
    has_own_prompt: bool
    params: Params
    adjust: Adjust | None = None

    @property
    def class_names(self) -> list[str]:
        """What each class is called, in the order of :attr:`classes`; no two are alike."""
        return told_apart([self.federation.dataset.shown_names[i] for i in self.classes.ids])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all tensors that it answers by: the same prompt has the same."""
        parts = {"params": self.params, "adjust": vars(self.adjust) if self.adjust else {}}
        tensors = {
            f"{part}/{name}": torch.as_tensor(tensor).detach().cpu().contiguous()
            for part, found in parts.items()
            for name, tensor in found.items()
        }
        return tensor_digest("", tensors)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`from_arguments` takes."""
    parser.add_argument(
        "--run",
        type=user_path,
        required=True,
        help="the run's folder, or one above it: the newest run",
    )
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--client", help="a client's number, from 0, or the name of its site")
    whose.add_argument(
        "--global",
        action="store_true",
        dest="shared",
        help="the global prompt: what a new client would start from",
    )
    whose.add_argument(
        "--newcomer",
        action="store_true",
        help="a site that was given a prompt afterwards (experiments.onboard), with its --state",
    )
    parser.add_argument(
        "--state",
        type=user_path,
        help="state-dir of the client's node, in a deployment, or of a newcomer",
    )
    parser.add_argument(
        "--weights",
        type=user_path,
        help="the model's weights file, where the run's path is not this machine's",
    )
    parser.add_argument(
        "--data-root", help="the data sets' folder, where the run's path is not this machine's"
    )
    parser.add_argument(
        "--all-classes", action="store_true", help="also classes that nobody trained"
    )


def from_arguments(options: argparse.Namespace) -> ClientModel:
    """Return what a command line asks for; says on standard error what somebody might not expect of
    it."""
    how = {
        "weights": options.weights,
        "data_root": options.data_root,
        "all_classes": options.all_classes,
        "newcomer": options.newcomer,
    }
    line = ProgressLine(RichConsole(stderr=True, highlight=False))
    run = asked_run(options.run)
    client = None if options.client is None else asked_client(run, options.client)
    try:
        model = load_client_model(run, client, options.state, progress=line.progress, **how)
    finally:
        line.stop()
    if model.client is not None and not model.has_own_prompt and model.adjust is None:
        who = "the newcomer" if options.newcomer else f"client {model.client}"
        print(
            f"{who} has no prompt of its own: the global one answers",
            file=sys.stderr,
        )
    dataset = model.federation.dataset
    known = len(model.class_names)
    all_of_them = len(dataset.without_repeats(range(len(dataset.class_names))))
    if known < all_of_them:
        print(
            f"among the {known} classes that were trained; --all-classes: among all {all_of_them}",
            file=sys.stderr,
        )
    return model


@torch.no_grad()
def load_client_model(
    run: Path,
    client: int | None,
    state: Path | None = None,
    *,
    weights: Path | None = None,
    data_root: str | None = None,
    all_classes: bool = False,
    newcomer: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> ClientModel:
    """Load a client's model from a run's folder.

    Args:
        run: the run's folder.
        client: logical client, from 0; None is the global model, what a new client would start
            from.
        state: the ``state-dir`` of a deployed client's node; None takes the run's ``private/``.
        weights: a file with the model's weights; None takes what the run's configuration says.
        data_root: the folder that holds the data sets; None takes the configuration's.
        all_classes: choose among all classes of the data set, not only those that were trained.
        newcomer: the model of the site that ``experiments.onboard`` gave a prompt, in ``state``.
        progress: is told of images that are encoded, for a method whose models are made from a
            client's.

    Raises:
        FedPGPError: no run's folder, no checkpoint, a client that the run does not have, a private
            state or weights that are not there, other weights than the run's, other data where the
            method needs a client's images, or no global model where it would have to answer.
    """
    _, config = open_checked(run)
    config["model"]["pretrained"] = weights_of(config["model"], weights)
    if data_root:
        config["dataset"]["root"] = data_root
    saved = latest_checkpoint(
        run / "checkpoint", lambda text: print(f"warning: {indented(text)}", file=sys.stderr)
    )
    if saved is None:
        raise FedPGPError(f"{run} has no checkpoint: the run saved nothing yet")
    tensors, info = saved
    shared = strip_prefix("shared/", tensors)
    adjust = None
    if newcomer:
        if state is None:
            raise FedPGPError("--newcomer has a prompt in its own folder alone: --state DIR")
        if info.get("data") is None:
            raise FedPGPError(f"{run} was made before a run recorded its classes")
        client, committed, adjust = given_to(state / info["run"], info["run"])
        if adjust is not None and all_classes:
            raise FedPGPError("--all-classes: this newcomer remembers images of trained classes")
    else:
        committed = _committed(tensors["committed"], client)
    if committed and state is None and config["runtime"]["name"] == "flower":
        raise FedPGPError(
            f"what client {client} learned for itself is on its own machine alone: run this "
            "there, with --state STATE_DIR, its node's (after experiments.deploy local it is "
            f"{run}_nodes/client_{client}/state)"
        )
    store = PrivateStore(state / info["run"] if state else run / "private", info["run"], 0)

    def answering(federation: Federation) -> ClientModel:
        federation.progress = progress
        fitted = admitted(tensors, federation) if newcomer else tensors
        check_fits(run / "checkpoint", fitted, federation)
        if not same_model(info, federation.method.task.clip.fingerprint):
            if weights:
                raise FedPGPError(f"--weights {weights}: the run was trained with other weights")
            print(f"warning: {OTHER_WEIGHTS}", file=sys.stderr)
        names = (
            range(len(federation.dataset.class_names))
            if all_classes
            else federation.federated_split.base_classes
        )
        classes = federation.class_set(federation.dataset.without_repeats(names))
        memory = strip_prefix("memory/", fitted)

        def personal() -> tuple[Params, Classifier]:
            client_only = (
                {client: federation.server.download_for(client, memory)} if memory else None
            )
            params = federation.models.personal_params(
                shared,
                [client],
                lambda wanted: store.load(wanted, committed) if committed else {},
                client_only,
                server_round=info["round"],
            )
            return params, federation.method.personal_classifier(params, classes)

        if committed:
            params, classifier = personal()
        else:  # a method without personal tensors, or a client that never took part
            params = federation.models.global_params(shared)
            classifier = federation.method.global_classifier(params, classes)
            if classifier is None and client is not None and not federation.models.personal_names:
                params, classifier = personal()  # of what the server sends beside the shared ones
            if classifier is None:
                who = (
                    "there is no global prompt"
                    if client is None
                    else f"client {client} never trained"
                )
                raise FedPGPError(f"{who}: method={config['method']['name']} has no global model")
        own, about = bool(committed), (classifier, classes, info["round"], client)
        return ClientModel(info["run"], config, federation, *about, own, params, adjust)

    record = info.get("data")
    if record is not None:
        with contextlib.suppress(NeedsImages):
            split = recorded_split(record, config["dataset"]["name"])
            return answering(build_federation(config, with_newcomer(split) if newcomer else split))
    if newcomer:
        raise FedPGPError(
            f"--newcomer: method={config['method']['name']} makes a client's model from its images "
            "each time, and a newcomer's are not kept"
        )
    federation = build_federation(config)
    if note := check_same_data(run, record, data_record(federation.federated_split)):
        print(f"note: {indented(note)}", file=sys.stderr)
    return answering(federation)


def _committed(rounds: np.ndarray, client: int | None) -> int:
    """Return the round whose private state a client has; 0 for none, and for the global model.

    Raises:
        FedPGPError: the run has no such client.
    """
    if client is None:
        return 0
    if not 0 <= client < len(rounds):
        raise FedPGPError(
            f"client {client} is none of the run's {len(rounds)}, 0 to {len(rounds) - 1}; "
            "--global asks for the global prompt, which a new client would start from"
        )
    return int(rounds[client])


def weights_of(model: Mapping, given: Path | None) -> str | None:
    """Return where the model's weights come from.

    Raises:
        FedPGPError: the run's weights are a file that this machine does not have.
    """
    if given is not None:
        return str(given.expanduser().resolve())
    pretrained = model.get("pretrained")
    file = pretrained and (Path(pretrained).suffix or "/" in pretrained)
    if file and not Path(pretrained).expanduser().is_file():
        raise FedPGPError(
            f"the run's weights, {pretrained}, are not on this machine; name the file: --weights "
            "FILE"
        )
    return pretrained
