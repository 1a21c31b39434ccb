"""A site that was not there, beside a finished run: its images, its place after the run's clients,
and what it keeps (``experiments.onboard``)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from clients.private_state import PrivateStore, owner
from fedpgp.atomic_files import write_atomically
from fedpgp.data import Dataset, load_dataset
from fedpgp.data.base import FileSplit, Subset
from fedpgp.data.files import subfolders
from fedpgp.data.layouts import NoImages
from fedpgp.data_record import Record, recorded_split
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.onboarding import ONBOARDINGS
from fedpgp.onboarding.newcomers import Adjust, Onboarded
from fedpgp.plain_text import written_out
from fedpgp.prefixes import strip_prefix
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit
from fedpgp.protocols.base import indices_of

ONBOARDED = "onboarded.json"
"""In the run's folder of a newcomer's state-dir: what it was given."""

ADJUST = "adjust/"
"""Before the names of what adjusts a newcomer's logits, in its private state."""

SHOWN = 20
"""Class names that a message lists."""

READING = ("background", "grey_range", "test_share", "split_seed", "on_bad_image")
"""Options of the run's data set that a newcomer's images are read by, where it has them."""


@dataclass(frozen=True)
class Site:
    """A newcomer's images in the classes of a run.

    Attributes:
        split: the run's clients, without images, and the newcomer after them.
        labels: the trained classes that it has.
        left_out: names of classes that it has and nobody trained.
    """

    split: FederatedSplit
    labels: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def client(self) -> int:
        """The newcomer's number: the first after the run's clients."""
        return len(self.split.clients) - 1


def with_newcomer(split: FederatedSplit, newcomer: ClientSplit | None = None) -> FederatedSplit:
    """Return the clients of a run and a newcomer after them; None: one without images."""
    nothing = np.empty(0, dtype=np.int64)
    without = ClientSplit(nothing, split.base_classes, {}, trains=False)
    return replace(split, clients=[*split.clients, newcomer or without])


def read_site(data: Path, record: Record, config: Mapping) -> Site:
    """Read a newcomer's images.

    Args:
        data: its folder: CLASS, or train/CLASS and test/CLASS.
        record: of the run's data.
        config: of the run.

    Raises:
        FedPGPError: no folder; classes that the run does not know; several sites; images that
            cannot be read.
    """
    recorded = recorded_split(record, config["dataset"]["name"])
    names, base = recorded.dataset.class_names, recorded.base_classes
    found = _images(data, names, config["dataset"])
    has = {names[i] for part in (found.train, found.test) for i in np.unique(part.labels)}
    has |= set(_folders(data)) & set(names)
    labels = tuple(label for label in base if names[label] in has)
    if not labels:
        raise FedPGPError(
            f"--data {written_out(data)} has no class that this run trained: "
            f"{_few([names[label] for label in base])}"
        )
    train, test = (Subset(part, indices_of(part, base)) for part in (found.train, found.test))
    dataset = Dataset(
        found.name,
        names,
        recorded.dataset.template,
        train,
        None,
        test,
        notes=found.notes,
        sources=recorded.dataset.sources,
    )
    newcomer = ClientSplit(
        np.arange(len(train)), base, {"unseen": EvalSet(np.arange(len(test)), base)}, trains=False
    )
    whole = with_newcomer(replace(recorded, dataset=dataset, private_data=True), newcomer)
    others = has - {names[label] for label in base}
    return Site(whole, labels, tuple(name for name in names if name in others))


def _images(data: Path, names: Sequence[str], options: Mapping) -> Dataset:
    """The images below a newcomer's folder, by the classes of the run."""
    shown = written_out(data)
    if not data.is_dir():
        raise FedPGPError(f"--data {shown} is no folder; it holds the site's own images")
    reading = {key: options[key] for key in READING if key in options}
    try:
        found = load_dataset("folder", data)
    except NoImages:
        nothing = FileSplit(data, [], [])
        return Dataset("folder", list(names), "a photo of a {}.", nothing, None, nothing)
    if strangers := [name for name in found.class_names if name not in names]:
        raise FedPGPError(
            f"--data {shown} has classes that the run does not know: "
            f"{_few(strangers)}. It knows {_few(names)}. Give a folder the run's name for its "
            "class, or move it away; other classes need another run (init_from=RUN)"
        )
    sites = sorted(set(found.train.domains or ()) | set(found.test.domains or ()))
    if len(sites) > 1:
        raise FedPGPError(
            f"--data {shown} holds several sites ({written_out(', '.join(sites[:SHOWN]))}), and "
            f"each gets a prompt of its own: name one, such as --data {shown}/{sites[0]}"
        )
    return load_dataset("folder", data, class_names=list(names), **reading)


def _few(names: Sequence[str]) -> str:
    more = f" … ({len(names)})" if len(names) > SHOWN else ""
    return written_out(", ".join(names[:SHOWN]) + more)


def _folders(data: Path) -> list[str]:
    """Names of the folders in a site's folder, and in its train folder."""
    inside = [data, data / "train"] if (data / "train").is_dir() else [data]
    return [name for folder in inside for name in subfolders(folder)]


# What it keeps. -----------------------------------------------------------------------------------


def read_onboarded(folder: Path) -> dict:
    """Return what a newcomer was given.

    Args:
        folder: of the run, in its state-dir.

    Raises:
        FedPGPError: it was given nothing, or the file is damaged.
    """
    path = folder / ONBOARDED
    try:
        about = json.loads(path.read_bytes())
        kept = {key: int(about[key]) for key in ("client", "round")}
        if about["adjusted"] and getattr(ONBOARDINGS.get(about["way"]), "adjustment", None) is None:
            raise ValueError(f"its way {about['way']!r} is not known")
        told = {key: bool(about[key]) for key in ("own_prompt", "adjusted")}
        return kept | told | {"way": about["way"]}
    except FileNotFoundError:
        raise FedPGPError(
            f"{folder.parent} has no prompt of a newcomer to this run; give it one: python -m "
            f"experiments.onboard --run RUN --data DIR --state {folder.parent}"
        ) from None
    except (OSError, *MALFORMED) as error:
        raise FedPGPError(
            f"{path} cannot be read ({error}); run experiments.onboard again"
        ) from error


def keep_given(folder: Path, run: str, about: Mapping, model: Onboarded) -> None:
    """Keep what a newcomer was given, for its owner alone.

    Args:
        folder: of the run, in its state-dir.
        run: its id.
        about: ``client`` and ``round``, and what else is to be said of it.
        model: what it was given.
    """
    _, attempt = owner(folder)
    store = PrivateStore(folder, run, max(1, attempt))
    store.claim()
    state = dict(model.state or {})
    adjust = model.adjust
    if adjust is not None:
        if not isinstance(adjust, ONBOARDINGS[about["way"]].adjustment or ()):
            raise FedPGPError(f"--onboard {about['way']}: what it makes of images cannot be kept")
        state |= {ADJUST + name: torch.as_tensor(value) for name, value in vars(adjust).items()}
    if state:
        store.save(about["client"], about["round"], state, 0)
    kept = {**about, "own_prompt": model.state is not None, "adjusted": adjust is not None}
    text = json.dumps(kept, indent=1) + "\n"
    write_atomically(folder / ONBOARDED, text.encode(), private=True)
    store.flush()


def given_to(folder: Path, run: str) -> tuple[int, int, Adjust | None]:
    """Return the number of a newcomer, the round whose private tensors are its own (0: none), and
    what changes its logits.

    Args:
        folder: of the run, in its state-dir.
        run: its id.

    Raises:
        FedPGPError: it was given nothing, or what it was given cannot be read.
    """
    about = read_onboarded(folder)
    client, kept = about["client"], about["round"]
    own = kept if about["own_prompt"] else 0
    if not about["adjusted"]:
        return client, own, None
    tensors = strip_prefix(ADJUST, PrivateStore(folder, run, 0).load(client, kept))
    return client, own, ONBOARDINGS[about["way"]].adjustment(**tensors)
