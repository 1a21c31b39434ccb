"""Scores a finished run without training: on its own data, told otherwise, or on other data.

python -m experiments.evaluate --run RUN_DIR                            its own protocol again
python -m experiments.evaluate --run RUN_DIR protocol.local_labels=own  with another option of it
python -m experiments.evaluate --run RUN_DIR dataset=imagenet_sketch    prompts on another data set
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console as RichConsole

from clients.private_state import PrivateStore
from experiments.callbacks.console import accuracy_table
from experiments.callbacks.progress import ProgressLine
from experiments.command import command
from experiments.help import unknown_words
from experiments.naming import job_name, named
from experiments.override_checks import check_overrides
from experiments.overrides import readable, user_path
from experiments.run_checks import open_checked
from experiments.run_folder import RunFolder, asked_run
from experiments.settings import choices, composed, flatten, parse
from fedpgp.atomic_files import check_target
from fedpgp.attacks import attackers_of
from fedpgp.build import build_federation, check_config, load_configured, split_configured
from fedpgp.data_record import check_same_data, data_record
from fedpgp.errors import FedPGPError
from fedpgp.evaluation import summarize
from fedpgp.federation import Progress
from fedpgp.plain_text import indented, written_out
from fedpgp.prefixes import strip_prefix
from fedpgp.protocols import ClientSplit, FederatedSplit, label_of, transfer
from strategies.checkpoint import OTHER_WEIGHTS, check_fits, latest_checkpoint, same_model

GROUPS = ("dataset", "protocol", "runtime")
KEYS = ("device", "dtype", "verbose")
WHERE = ("root", "download", "on_bad_image", "views", "memory")
"""Options of a data set that say where and how its images are read, not which they are."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        type=user_path,
        required=True,
        metavar="RUN_DIR",
        help="the folder of a run, or one above it: the newest run there",
    )
    parser.add_argument(
        "--to", type=user_path, metavar="FILE", help="default: RUN_DIR/evaluations/<overrides>.json"
    )
    parser.add_argument(
        "overrides", nargs="*", help="of dataset, protocol, runtime, device and dtype"
    )
    options, late = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in late):
        parser.error(unknown_words(late, sys.argv[1:] if arguments is None else arguments))
    line = ProgressLine(RichConsole(stderr=True, highlight=False))
    overrides = readable([*options.overrides, *late])
    if options.to:
        check_target(options.to)
    run = asked_run(options.run)
    try:
        record = evaluate(run, overrides, line.progress)
    finally:
        line.stop()
    path = options.to or _place(run, overrides, record)
    RunFolder(path.parent).json(path.name, record)
    for note in record["notes"]:
        print(f"note: {note}", file=sys.stderr)
    console = RichConsole(highlight=False, markup=False)
    console.print(accuracy_table(record["accuracy"]))
    console.print(
        f"percent, mean over {len(record['clients'])} clients, after round {record['round']}"
    )
    print(f"wrote {written_out(path)}")
    return 0


def _place(run: Path, overrides: Sequence[str], record: Mapping) -> Path:
    """The file of these figures.

    Raises:
        FedPGPError: it holds those of other overrides, which are not overwritten.
    """
    path = run / "evaluations" / f"{job_name(overrides) if overrides else 'own'}.json"
    try:
        before = json.loads(path.read_text())
        theirs, data = named(before["overrides"]), before.get("data")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # none, or one that a crash or a person broke
        return path
    if theirs != named(overrides):
        raise FedPGPError(
            f"{path} holds the figures of {' '.join(theirs)}; name another file: --to FILE"
        )
    if data not in (None, record["data"]):  # a relative path, seen from another folder, may be one
        raise FedPGPError(f"{path} holds the figures of other images; name another file: --to FILE")
    return path


def evaluate(
    run: Path, overrides: Sequence[str] = (), progress: Progress = lambda done, total, what: None
) -> dict:
    """Scores a run's last checkpoint.

    Args:
        run: its folder.
        overrides: what is different from the run: ``dataset=…`` for other data,
            options of its protocol.
        progress: is told of images that are encoded and of clients that are evaluated.

    Returns:
        ``round``, ``accuracy`` as in summary.json, ``data`` (which images they are of), ``notes``
        on what of them is not used, and ``clients``: a row each, as
        :func:`fedpgp.evaluation.summarize` takes them; attackers have none.

    Raises:
        FedPGPError: no checkpoint; an override that would change who trained on what, or
            that has no meaning here; a deployment whose clients have their own images,
            or prompts of their own.
    """
    _, config = open_checked(run)
    checkpoint = latest_checkpoint(
        run / "checkpoint", lambda text: print(f"warning: {indented(text)}", file=sys.stderr)
    )
    if checkpoint is None:
        raise FedPGPError(f"{run} has no checkpoint: there is nothing to score yet")
    tensors, info = checkpoint
    _refuse_what_is_elsewhere(run, config, tensors["committed"])
    changed = _changed(config, overrides)
    check_config(changed)
    federated_split, there = _split_of(run, config, changed, info.get("data"))
    if there and _which(changed["dataset"]) == _which(config["dataset"]):
        federated_split = _same_training(federated_split, split_configured(changed))
    else:
        label = _label(changed["dataset"])
        federated_split = _only(
            transfer(federated_split, {label: load_configured(changed)}), f"datasets.{label}"
        )
    federation = build_federation(changed, federated_split)
    federation.progress = progress
    check_fits(run / "checkpoint", tensors, federation)
    if not same_model(info, federation.method.task.clip.fingerprint):
        print(f"warning: {OTHER_WEIGHTS}", file=sys.stderr)
    shared = strip_prefix("shared/", tensors)
    server_state = strip_prefix("memory/", tensors)
    left = config.get("left", ())
    clients = [client for client in range(federation.num_clients) if client not in left]
    client_only = (
        {client: federation.server.download_for(client, server_state) for client in clients}
        if server_state
        else None
    )
    store = PrivateStore(run / "private", info["run"], 0)
    committed = tensors["committed"]

    def load_state(client: int):
        return store.load(client, int(committed[client]))

    results = federation.evaluate(
        shared, clients, load_state, client_only, zero_shot=True, server_round=info["round"]
    )
    domains = [client_split.domain for client_split in federated_split.clients]
    rows: list[dict] = []
    for result in results:
        rows.append({"id": result.client, "domain": domains[result.client], **result.metrics})
        progress(len(rows), len(clients), "clients evaluated")
    rows.sort(key=lambda row: row["id"])
    about = {
        "round": info["round"],
        "overrides": list(overrides),
        "data": data_record(federated_split)["pictures"],
    }
    attackers = attackers_of(changed, federated_split)
    rows = [row for row in rows if attackers is None or row["id"] not in attackers.clients]
    return {
        **about,
        "notes": list(federated_split.dataset.notes),
        "accuracy": summarize(rows),
        "clients": rows,
    }


def _split_of(
    run: Path, config: Mapping, changed: Mapping, record: Mapping | None
) -> tuple[FederatedSplit, bool]:
    """What the run was trained on, and which client owns what of it.

    Where ``dataset.root`` names another folder, the run's data may have moved there, or it holds
    the other data that the run is scored on: the record tells.

    Returns:
        (the split, whether its images are where ``changed`` says).

    Raises:
        FedPGPError: they have changed since the run was started, or are not to be found.
    """
    moved = {**config, "dataset": {**config["dataset"], **_where(changed["dataset"])}}
    places = [moved]
    if changed["dataset"].get("root") != config["dataset"].get("root"):
        other = _which(changed["dataset"]) != _which(config["dataset"])
        places = [config, moved] if other else [moved, config]
    errors = []
    for place in places:
        try:
            federated_split = split_configured(place)
            note = check_same_data(run, record, data_record(federated_split))
        except FedPGPError as error:
            errors.append(error)
            continue
        if note:
            print(f"note: {indented(note)}", file=sys.stderr)
        return federated_split, place is moved
    raise errors[0]


def _refuse_what_is_elsewhere(run: Path, config: Mapping, committed: np.ndarray) -> None:
    """Refuses a deployment of which a part that is needed is on the clients' machines."""
    own = config["partition"]["scheme"] == "own"
    if own or (config["runtime"]["name"] == "flower" and committed.any()):
        what = "the images of this run are" if own else "what its clients learned for themselves is"
        raise FedPGPError(
            f"{what} on its clients' own machines and not here: its figures, as they gave them, "
            f"are in {run / 'summary.json'} and clients.csv; a client's prompt answers on its "
            f"machine: python -m experiments.predict --run {shlex.quote(str(run))} --client ID "
            "--state STATE_DIR IMAGE..."
        )


def _changed(config: Mapping, overrides: Sequence[str]) -> dict:
    """The run's configuration with the overrides."""
    check_overrides(overrides)
    groups = choices()
    changed = json.loads(json.dumps(config))
    given = parse(overrides)
    new = composed(overrides)
    for override in sorted(
        given, key=lambda o: o.key_or_group not in groups
    ):  # a choice, then what is set inside it
        key = override.key_or_group
        top, _, inner = key.partition(".")
        if top not in (*GROUPS, *KEYS):
            raise FedPGPError(
                f"{key} has no meaning for a run that is trained; what can differ: "
                f"{', '.join((*GROUPS, *KEYS))}"
            )
        if key in groups:
            kept = {
                name: config[key][name]
                for name in WHERE
                if key == "dataset" and config[key].get(name) is not None
            }
            changed[key] = {**new[key], **kept, "name": new[key]["name"]}
        elif inner:
            changed[top][inner] = flatten(new).get(key, new[top].get(inner))
        else:
            changed[key] = new[key]
    return changed


def _which(dataset: Mapping) -> dict:
    """The part of a data set's configuration that says which images; what everybody tests
    on goes without saying."""
    which = {key: value for key, value in dataset.items() if key not in WHERE and value is not None}
    if which.get("evaluate_on") == "test":
        del which["evaluate_on"]
    return which


def _label(dataset: Mapping) -> str:
    """What other data are called in the figures: their name, what is not usual of them, and
    whose folder they are."""
    usual = composed([f"dataset={dataset['name']}"])["dataset"]
    spec = {
        key: value
        for key, value in _which(dataset).items()
        if key == "name" or value != usual.get(key)
    }
    return label_of(spec) + (
        f" {Path(dataset['root']).name}" if dataset["name"] == "folder" else ""
    )


def _where(dataset: Mapping) -> dict:
    return {key: value for key, value in dataset.items() if key in WHERE}


def _only(federated_split: FederatedSplit, figure: str) -> FederatedSplit:
    """The same clients with one eval set, which takes the place of their own."""
    client_splits = [
        replace(client_split, eval_sets={figure: client_split.eval_sets[figure]})
        for client_split in federated_split.clients
    ]
    return replace(federated_split, clients=client_splits)


def _same_training(federated_split: FederatedSplit, other: FederatedSplit) -> FederatedSplit:
    """The other split, when its clients train on the same images and classes.

    Raises:
        FedPGPError: they would not.
    """
    before, after = federated_split.clients, other.clients
    if len(before) != len(after) or not all(map(_train_alike, before, after)):
        raise FedPGPError(
            "these overrides of protocol would have given the clients other images or classes "
            "to train on: a trained run cannot be scored by them"
        )
    return other


def _train_alike(one: ClientSplit, other: ClientSplit) -> bool:
    """Whether two clients train on the same images and classes in every round."""

    def changes(client_split: ClientSplit) -> list[int]:
        return [phase.since for phase in client_split.phases]

    return (
        one.trains == other.trains
        and changes(one) == changes(other)
        and all(
            one.classes_at(since) == other.classes_at(since)
            and np.array_equal(one.train_at(since), other.train_at(since))
            for since in (0, *changes(one))
        )
    )


if __name__ == "__main__":
    sys.exit(main())
