"""Clients with images of their own (``partition=own``): nothing is split, and nobody sees more than
its own.

The class list is the federation's. A client sees its own folder; the server sees none, and knows of
a client's images only how many there are.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedpgp.config import Config, DatasetSection
from fedpgp.data import Dataset
from fedpgp.data.class_names import as_names, check_template
from fedpgp.data.subsets import base_novel, few_shot
from fedpgp.errors import FedPGPError, unknown
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit, make_protocol
from fedpgp.protocols.base import indices_of
from fedpgp.protocols.base2novel import Base2Novel

PROTOCOLS = ("base2novel", "personal")
"""Those that work with clients' own images, beside any that says ``images_arrive``."""

NOTHING = np.empty(0, dtype=np.int64)


def split_private_data(config: Config, load: Callable[[DatasetSection], Dataset]) -> FederatedSplit:
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
    layout = config.dataset.options.get("layout")  # of all sites; this is one of them
    options = {**config.dataset.options, "layout": layout and layout.removeprefix("SITE/")}
    dataset = load(replace(config.dataset, options=options))
    train = indices_of(dataset.train, base)
    if config.shots is not None and len(train):
        train = train[few_shot(dataset.train.labels[train], config.shots, config.seed)]
    has = np.unique(dataset.train.labels[train])
    labels = tuple(label for label in base if label in has)
    eval_sets = {
        "local": EvalSet(
            indices_of(dataset.test, labels),
            base,
            labels if protocol.local_labels == "own" else None,
        )
    }
    if novel:
        wanted = {
            "base": EvalSet(indices_of(dataset.test, base), base),
            "novel": EvalSet(indices_of(dataset.test, novel), novel),
        }
        eval_sets |= {
            figure: eval_set for figure, eval_set in wanted.items() if len(eval_set.indices)
        }
    client_splits[client] = ClientSplit(train, base, eval_sets)
    return FederatedSplit(dataset, base, novel, client_splits, private_data=True)
