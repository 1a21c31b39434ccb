"""Says, before the first round, what a node would be refused or left out for
(``experiments.deploy check``).

Each check asks the part of the project that the node itself asks: what is right here is right
there.
"""

import argparse
import datetime
import email.utils
import http.client
import json
import logging
import os
import shutil
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from rich.console import Console as RichConsole

from clients.expiry import days_left, expiring
from clients.node_config import NodeConfig, compatibility, installed_version
from experiments.callbacks.progress import ProgressLine
from experiments.override_checks import check_overrides
from experiments.overrides import readable, user_path
from experiments.run_checks import open_checked
from experiments.settings import composed
from fedpgp.atomic_files import private_folder
from fedpgp.build import build_federation, check_config, takes_arrivals
from fedpgp.data import Split
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from fedpgp.plain_text import indented, written_out
from strategies.checkpoint import latest_checkpoint

OK, WARNING, WRONG = "ok", "warning", "wrong"
SHOWN = 5
"""Broken images that are named."""

SPARE_BYTES = 200 * 2**20
"""Free space that a node needs beside its features: the app, its logs, the cached parts of the
model."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: ``ok``, ``warning`` (the node takes part) or ``wrong`` (it would be refused, or
            fail).
        what: which check.
        text: for a person.
    """

    level: str
    what: str
    text: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--data", type=user_path, required=True, help="the site's own images: data-dir of its node"
    )
    parser.add_argument(
        "--run", type=user_path, help="a copy of a run's folder: its classes, model and settings"
    )
    parser.add_argument("--client", type=int, default=0, help="client-id of its node")
    parser.add_argument("--state", type=user_path, help="state-dir of its node")
    parser.add_argument("--weights", type=user_path, help="the model's weights file")
    parser.add_argument(
        "--on-bad-image", choices=("error", "skip"), help="as in the node's configuration"
    )
    parser.add_argument("--key", type=user_path, help="the node's private key")
    parser.add_argument("--superlink", help="address of the server: fed.example.org:8443")
    parser.add_argument("--root-certificates", type=user_path, help="ca.crt")
    parser.add_argument(
        "overrides", nargs="*", help="as for a run: 'dataset.class_names=[cat,dog]' model=vit_b16 …"
    )


def main(options: argparse.Namespace) -> int:
    """Print what each check finds; return the command's exit status: 2 where something is wrong.

    Raises:
        FedPGPError: the command line cannot work.
    """
    wrong = 0
    for finding in findings(options):
        wrong += finding.level == WRONG
        print(f"{finding.level:8} {finding.what}: {indented(finding.text)}", flush=True)
    print("this node would take part" if not wrong else f"{wrong} to mend before the first round")
    return 2 if wrong else 0


def findings(options: argparse.Namespace) -> Iterator[Finding]:
    """All checks, each of which may find several things."""
    yield Finding(OK, "version", f"fedpgp {installed_version()}; the server needs the same")
    yield from _state_dir(options.state)
    if options.key is not None:
        yield _key(options.key, options.client)
    if options.superlink is not None:
        yield from _server(options.superlink, options.root_certificates)
    elif options.root_certificates is not None:
        yield from _certificate(options.root_certificates)
    yield from _data(options)


# The images, and what they are encoded with. ------------------------------------------------------


def as_node(node: Mapping[str, object], config: Mapping) -> Federation:
    """Return the federation as the node of a site sees it; nothing is kept of it. Images are
    listed, not opened.

    Args:
        node: its configuration, without ``state-dir``.
        config: the federation's.

    Raises:
        FedPGPError: what the node would be refused for.
    """
    with tempfile.TemporaryDirectory() as folder:
        node_config = NodeConfig.of({**node, "state-dir": folder, "on-bad-image": "error"})
        return build_federation(json.loads(node_config.configured(json.dumps(config))))


def _data(options: argparse.Namespace) -> Iterator[Finding]:
    config = _configuration(options)
    if not options.data.is_dir():
        text = f"{written_out(options.data)} is no folder; --data names the site's own images"
        yield Finding(WRONG, "images", text)
        return
    node = {"client-id": options.client, "data-dir": str(options.data)}
    if options.weights is not None:
        node["weights"] = str(options.weights)
    try:
        federation = as_node(node, config)
    except FedPGPError as error:
        yield Finding(WRONG, "classes and images", str(error))
        return
    for note in federation.dataset.notes:
        yield Finding(WARNING, "images", note)
    skip = (options.on_bad_image or config["dataset"].get("on_bad_image")) == "skip"
    arrive = takes_arrivals(config)
    yield from _images(federation, options.client, skip, arrive)
    yield from _model(federation, options)
    if options.state is not None:
        yield from _space(options.state, federation)


def _configuration(options: argparse.Namespace) -> dict:
    """Return the federation's: of a run, or of the words of the command line.

    Raises:
        FedPGPError: it cannot be read, or cannot work.
    """
    if options.run is not None:
        if options.overrides:
            raise FedPGPError(
                "--run has the run's own settings; leave out " + " ".join(options.overrides)
            )
        return open_checked(options.run)[1]
    overrides = readable(options.overrides, absolute=True)
    chosen = [] if any(o.startswith("dataset=") for o in overrides) else ["dataset=folder"]
    clients = (
        []
        if any(o.startswith("clients=") for o in overrides)
        else [f"clients={options.client + 1}"]
    )
    overrides = ["runtime=flower", "partition=own", *chosen, *clients, *overrides]
    check_overrides(overrides)
    config = composed(overrides)
    check_config(config)
    return config


def _images(federation: Federation, client: int, skip: bool, arrive: bool) -> Iterator[Finding]:
    """Whether all can be read, how many there are, and of which classes; with ``arrive`` there may
    be more during the run."""
    broken, left = [], {}
    line = ProgressLine(RichConsole(stderr=True, highlight=False))
    try:
        for part in ("train", "test"):
            split = getattr(federation.dataset, part)
            rows = _unreadable(split, part, line)
            broken += [split.describe(row) for row in rows]
            left[part] = np.setdiff1d(np.arange(len(split)), rows)
    finally:
        line.stop()
    if broken:
        listed = ", ".join(written_out(one) for one in broken[:SHOWN]) + (
            " …" if len(broken) > SHOWN else ""
        )
        advice = "left out" if skip else "restore them, or start the node with on-bad-image=skip"
        text = f"{len(broken)} cannot be read ({advice}): {listed}"
        yield Finding(WARNING if skip else WRONG, "broken images", text)
    client_split = federation.federated_split.clients[client]
    counts = {
        "train": np.intersect1d(client_split.train, left["train"]),
        "test": np.intersect1d(client_split.test, left["test"]),
    }
    train, test = len(counts["train"]), len(counts["test"])
    has = np.unique(federation.dataset.train.labels[counts["train"]])
    names = federation.dataset.class_names
    lacking = [
        names[label] for label in federation.federated_split.base_classes if label not in has
    ]
    trained = federation.federated_split.base_classes
    text = (
        f"{train} to train on, {test} to test on, of {len(has)} of {len(trained)} trained classes"
    )
    if not train and not test:
        why = "it takes part once some have come" if arrive else "too few to take part"
        yield Finding(WARNING if arrive else WRONG, "images", f"{text}: {why}")
        return
    yield Finding(OK, "images", text)
    if not train:
        yield Finding(WARNING, "images", "none to train on: this client is only evaluated")
    if not test:
        yield Finding(WARNING, "images", "none to test on: this client has no accuracy")
    if lacking and train:
        listed = ", ".join(lacking[:SHOWN]) + (" …" if len(lacking) > SHOWN else "")
        yield Finding(WARNING, "classes", f"none to train on of {len(lacking)}: {listed}")


def _unreadable(split: Split, part: str, line: ProgressLine) -> list[int]:
    rows = []
    for row in range(len(split)):
        line.progress(row, len(split), f"reading {part} images")
        try:
            split.image(row)
        except FedPGPError:
            rows.append(row)
    return rows


def _model(federation: Federation, options: argparse.Namespace) -> Iterator[Finding]:
    """Whether the weights are there, and those of the run."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # the hub tells of each of its tries; the error says it once
    try:
        here = compatibility(federation)["model weights"]
    except FedPGPError as error:
        advice = "`weights` in the node's configuration names a file (here: --weights FILE)"
        yield Finding(WRONG, "weights", f"{error}; {advice}")
        return
    finally:
        logging.disable(before)
    saved = (
        None
        if options.run is None
        else latest_checkpoint(options.run / "checkpoint", lambda text: None)
    )
    there = (
        f"sha256 {saved[1]['model_sha256'][:16]}"
        if saved and saved[1].get("model_sha256")
        else here
    )
    if there != here:
        yield Finding(WRONG, "weights", f"{here} here, {there} in the run")
    else:
        yield Finding(OK, "weights", here + (", those of the run" if saved else ""))


# The machine. -------------------------------------------------------------------------------------


def _state_dir(folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        yield Finding(WARNING, "state-dir", "not checked: --state DIR")
        return
    try:
        private_folder(folder)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except FedPGPError as error:
        yield Finding(WRONG, "state-dir", str(error))
    except OSError as error:
        yield Finding(WRONG, "state-dir", f"{folder} cannot be written: {error.strerror or error}")
    else:
        if folder.stat().st_mode & 0o077:
            yield Finding(
                WARNING,
                "state-dir",
                f"{folder} is open to other users, and cannot be closed by this one",
            )
        yield Finding(OK, "state-dir", f"{folder} can be written")


def _space(folder: Path, federation: Federation) -> Iterator[Finding]:
    """Whether the features of all images fit on the disk."""
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        images = sum(len(split) for split in (federation.dataset.train, federation.dataset.test))
        needed = SPARE_BYTES + 4 * images * federation.method.task.clip.embed
        text = f"{free / 1e9:.1f} GB free in {folder}, {needed / 1e9:.1f} GB needed"
        yield Finding(OK if free >= needed else WRONG, "disk", text)


def _key(path: Path, client: int) -> Finding:
    try:
        load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        return Finding(WRONG, "key", f"{path} cannot be read: {error.strerror or error}")
    except Exception as error:  # of whatever cryptography finds in it
        return Finding(WRONG, "key", f"{path} is no private key in OpenSSH's format ({error})")
    if path.stat().st_mode & 0o077:
        return Finding(WRONG, "key", f"{path} can be read by other users: chmod 600 {path}")
    return Finding(OK, "key", f"{path}; its .pub has to be registered with --name client-{client}")


def _certificate(path: Path) -> Iterator[Finding]:
    try:
        left = days_left(path)
    except (OSError, ValueError) as error:
        yield Finding(WRONG, "certificate", f"{path} cannot be read: {error}")
        return
    told = list(expiring([path]))
    level = WRONG if left <= 0 else WARNING if told else OK
    yield Finding(level, "certificate", told[0] if told else f"{path} expires in {left:.0f} days")


def _server(address: str, authority: Path | None) -> Iterator[Finding]:
    """Whether the server is reached and trusted, and whether the clocks agree."""
    if authority is None:
        yield Finding(WRONG, "server", "not asked: --superlink needs --root-certificates ca.crt")
        return
    yield from _certificate(authority)
    host, _, port = address.rpartition(":")
    try:
        trust = ssl.create_default_context(cafile=authority)
        connection = http.client.HTTPSConnection(
            host.strip("[]"), int(port), context=trust, timeout=20
        )
        connection.request("GET", "/health")
        answer = connection.getresponse()
    except (
        OSError,
        http.client.HTTPException,
    ) as error:  # ssl's are OSErrors, and some are ValueErrors too
        yield Finding(WRONG, "server", f"{address} is not reached: {error}")
    except ValueError:
        yield Finding(WRONG, "server", f"--superlink {address} is no address; it is NAME:PORT")
    else:
        yield Finding(OK, "server", f"{address} is reached, and its certificate is right")
        yield from _clock(answer.headers)


def _clock(headers: Mapping[str, str]) -> Iterator[Finding]:
    if "date" not in headers:
        return
    theirs = email.utils.parsedate_to_datetime(headers["date"])
    ahead = (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()
    text = f"{abs(ahead):.0f} seconds {'ahead of' if ahead > 0 else 'behind'} the server's"
    limits = (
        f"a node that is {SYSTEM_TIME_TOLERANCE} ahead or {TIMESTAMP_TOLERANCE} behind is refused"
    )
    refused = ahead > SYSTEM_TIME_TOLERANCE or ahead < -TIMESTAMP_TOLERANCE
    yield Finding(WRONG if refused else OK, "clock", f"{text}; {limits}")
