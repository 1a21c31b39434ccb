"""Clients that join a running federation, or leave it for good, when its run is resumed."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from experiments.finished_run import from_its_prompts
from experiments.run_folder import MEMBERS
from fedpgp.atomic_files import write_atomically
from fedpgp.config import Config
from fedpgp.errors import FedPGPError

KEYS = ("clients", "left")
"""Settings that may change between two rounds."""


def check_new(config: Mapping) -> None:
    """Refuse a new run that clients have left already.

    Raises:
        FedPGPError: naming the setting.
    """
    if config.get("left"):
        raise FedPGPError(
            f"left={list(config['left'])}: these clients leave a run that is resumed; a new run "
            "begins without them, with fewer clients"
        )


def check_members(before: Mapping, now: Mapping) -> None:
    """Refuse a change of the clients that would take something from the others.

    Args:
        before: the configuration of the run.
        now: the one that it is to have.

    Raises:
        FedPGPError: saying which, and what to do instead.
    """
    old, new = before["clients"], now["clients"]
    gone, going = set(before.get("left", ())), set(now.get("left", ()))
    Config.check(clients=new, left=now.get("left", ()))
    if (new, going) == (old, gone):
        return
    if new < old:
        raise FedPGPError(
            f"clients={new}: this run has {old}, and each keeps its number; those that leave are "
            "named: left=[…]"
        )
    scheme, privacy = before["partition"]["scheme"], before.get("privacy", {}).get("name", "none")
    if new > old and scheme != "own":
        raise FedPGPError(
            f"clients={new}: partition={scheme} splits the images over all clients at once, so "
            f"that those of this run's {old} would be others'. Start a new run"
            f"{from_its_prompts(before)}; clients with images of their own (partition=own) may join"
        )
    if privacy != "none":
        raise FedPGPError(
            f"clients={new} left={sorted(going)}: the noise of privacy={privacy}, and its account, "
            "were made for the clients that this run began with; start a new run"
            f"{from_its_prompts(before)}"
        )
    if back := sorted(gone - going):
        raise FedPGPError(
            f"left={sorted(going)}: client {back[0]} has left this run for good. A site that comes "
            f"back is a new client, with a key of its own: clients={new + 1}"
        )
    if strangers := sorted(client for client in going if client >= new):
        raise FedPGPError(f"left={sorted(going)}: there is no client {strangers[0]} of {new}")
    if len(going) == new:
        raise FedPGPError(f"left={sorted(going)}: nobody would be left to train")


def record_members(folder: Path, before: Mapping, now: Mapping, server_round: int) -> None:
    """Write who takes part from now on into a run's config.yaml, and who did until then.

    Args:
        folder: of the run.
        before: the configuration of its checkpoint.
        now: the one that it has from now on.
        server_round: the last that it was trained with the clients before.
    """
    if all(before.get(key, []) == now.get(key, []) for key in KEYS):
        return
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    until = {"until_round": server_round, **{key: before.get(key, []) for key in KEYS}}
    known = [each for each in config.get(MEMBERS, []) if each["until_round"] != server_round]
    config |= {MEMBERS: [*known, until], **{key: now.get(key, []) for key in KEYS}}
    write_atomically(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
