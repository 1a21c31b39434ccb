"""Clients with images of their own (``partition=own``): nothing is split, and nobody sees more than
its own.

The class list is the federation's. A client sees its own folder; the server sees none, and knows of
a client's images only how many there are. With ``partition.images_arrive`` a folder may grow during
the run (:mod:`fedpgp.data.arrivals`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedpgp.config import Config, DatasetSection
from fedpgp.data import Dataset, Split
from fedpgp.data.arrivals import arrived, look
from fedpgp.data.base import FileSplit
from fedpgp.data.class_names import as_names, check_template
from fedpgp.data.images import Reading
from fedpgp.data.joint import Concat
from fedpgp.data.layouts import NoImages
from fedpgp.data.subsets import base_novel, few_shot, few_shot_as_they_came
from fedpgp.errors import FedPGPError, unknown
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit, UnknownImages, make_protocol
from fedpgp.protocols.base import indices_of
from fedpgp.protocols.base2novel import Base2Novel

PROTOCOLS = ("base2novel", "personal")
"""Those that work with clients' own images, beside any that says ``images_arrive``."""

NOTHING = np.empty(0, dtype=np.int64)


Load = Callable[[DatasetSection], Dataset]


def images_arrive(config: Config) -> bool:
    """Return whether the clients' own folders may grow during a run: it says so itself, or its
    protocol does."""
    if config.partition.scheme != "own":
        return False
    return config.partition.images_arrive or make_protocol(config.protocol).images_arrive


def look_for_images(config: Config, load: Load, server_round: int | None) -> list[str]:
    """Look at a client's folder, and add what is new to its list; see
    :func:`fedpgp.data.arrivals.look`.

    Args:
        config: of the client's node, with ``partition.image_list``.
        load: loads the configured data set.
        server_round: the round that will train on the images; None: the next.
    """
    whole = replace(config.dataset, on_bad_image="error")  # what is new is opened one by one
    path = Path(config.partition.image_list)
    return look(path, lambda: load(_of_one_site(whole, skip=True)), server_round)


def split_private_data(config: Config, load: Load) -> FederatedSplit:
    """The split as one participant knows it.

    Args:
        config: the configuration; ``partition.client`` is the client whose images are in
            ``dataset.root``, None on the server.
        load: loads the configured data set.

    Returns:
        The split, of which only the client's own entry is not empty. Its local eval set holds its
        test images of the classes it trains on, base and novel all its test images of those
        classes. On the server the data set has no split.

    Raises:
        FedPGPError: no class list; a template without a place for them; a protocol that splits
            images; images of other classes.
    """
    names = config.dataset.options.get("class_names")
    if config.dataset.name != "folder" or not names:
        raise FedPGPError(
            "partition=own needs the federation's class list: dataset=folder "
            "'dataset.class_names=[first,second,…]'"
        )
    names = as_names(names)
    template = config.dataset.options["template"]
    check_template(template)
    protocol = make_protocol(config.protocol)
    if protocol.name not in PROTOCOLS and not protocol.images_arrive:
        raise FedPGPError(
            unknown("protocol for clients with their own images", protocol.name, PROTOCOLS)
        )
    if protocol.selection == "validation":
        raise FedPGPError(
            "protocol.selection=validation is not there for clients with their own images; use last"
        )
    base, novel = tuple(range(len(names))), ()
    if isinstance(protocol, Base2Novel):
        base, novel = (tuple(ids) for ids in base_novel(names, order=protocol.class_order))
    client_splits = [
        ClientSplit(NOTHING, base, {"local": EvalSet(NOTHING, base)}) for _ in range(config.clients)
    ]
    client = config.partition.client
    if client is None:
        dataset = Dataset("folder", names, template, None, None, None)
        return FederatedSplit(dataset, base, novel, client_splits, private_data=True)
    dataset = _own_images(config, load, names)
    train = indices_of(dataset.train, base)
    if config.shots is not None and len(train):
        train = train[_few_shot(dataset.train, train, config)]
    has = np.unique(dataset.train.labels[train])
    labels = tuple(label for label in base if label in has)
    eval_sets = {
        "local": EvalSet(
            indices_of(dataset.test, labels),
            base,
            labels if protocol.local_labels == "own" else None,
        )
    }
    others = None
    if novel:
        wanted = {
            "base": EvalSet(indices_of(dataset.test, base), base),
            "novel": EvalSet(indices_of(dataset.test, novel), novel),
        }
        eval_sets |= {
            figure: eval_set for figure, eval_set in wanted.items() if len(eval_set.indices)
        }
        if {"base", "novel"} <= set(eval_sets):
            others = UnknownImages("base", eval_sets["novel"].indices)
    client_splits[client] = ClientSplit(train, base, eval_sets, unknown=others)
    return FederatedSplit(dataset, base, novel, client_splits, private_data=True)


def _own_images(config: Config, load: Load, names: list[str]) -> Dataset:
    """Return a client's images; where its folder grows, those of its list, or all where nobody
    keeps a list."""
    chosen, partition = config.dataset, config.partition
    if not images_arrive(config):
        return load(_of_one_site(chosen))
    if chosen.evaluate_on == "validation":
        raise FedPGPError(
            "dataset.evaluate_on=validation takes images out of training, and which would change "
            "when images arrive; use test"
        )
    root, template = Path(chosen.root), chosen.options["template"]
    if partition.image_list is not None:
        about = (names, template, Reading.of(chosen.options))
        return arrived(Path(partition.image_list), root, *about, partition.image_round)
    try:
        return load(_of_one_site(chosen, skip=True))
    except NoImages as error:
        nothing = FileSplit(root, [], [])
        return Dataset("folder", names, template, nothing, None, nothing, notes=(str(error),))


def _of_one_site(chosen: DatasetSection, *, skip: bool = False) -> DatasetSection:
    """The data set of one site: the configured layout is that of all sites."""
    layout = chosen.options.get("layout")
    options = {**chosen.options, "layout": layout and layout.removeprefix("SITE/")}
    return replace(chosen, options=options | ({"unknown_classes": "skip"} if skip else {}))


def _few_shot(split: Split, rows: np.ndarray, config: Config) -> np.ndarray:
    """Positions among the rows of a split that are kept."""
    labels = split.labels[rows]
    if not images_arrive(config):
        return few_shot(labels, config.shots, config.seed)
    starts = split.starts if isinstance(split, Concat) else [0, len(split)]
    return few_shot_as_they_came(
        labels, np.searchsorted(rows, starts).tolist(), config.shots, config.seed
    )
