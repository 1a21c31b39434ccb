"""Protocols: one file each here, and one YAML in ``conf/protocol/``."""

import dataclasses
from collections.abc import Mapping

from fedpgp.errors import FedPGPError, unknown
from fedpgp.evaluation.figures import BY_NAME, EVAL_SETS
from fedpgp.protocols.base import PROTOCOLS, EvalProtocol, SplitRequest
from fedpgp.protocols.cross_dataset import as_spec, label_of, transfer
from fedpgp.protocols.splits import (
    ClientSplit,
    EvalSet,
    FederatedSplit,
    LifelongTask,
    Phase,
    UnknownImages,
)


def make_protocol(config: Mapping) -> EvalProtocol:
    """A protocol from its ``name`` and options.

    Raises:
        FedPGPError: unknown protocol, option or value.
    """
    if config["name"] not in PROTOCOLS:
        raise FedPGPError(unknown("protocol", config["name"], PROTOCOLS))
    protocol = PROTOCOLS[config["name"]]
    options = {key: value for key, value in config.items() if key != "name"}
    valid = [field.name for field in dataclasses.fields(protocol)]
    for option in options:
        if option not in valid:
            raise FedPGPError(unknown("setting of protocol", option, valid))
    try:
        return protocol(**options)
    except TypeError as error:
        raise FedPGPError(f"protocol={protocol.name}: {error}") from error


def split_clients(request: SplitRequest, protocol: Mapping) -> FederatedSplit:
    """Split a data set over clients.

    Args:
        request: what is split, and how.
        protocol: its ``name`` and options.

    Raises:
        FedPGPError: unknown protocol or option; a data set without the split it needs; a
            partition that cannot work; an eval set whose name is no figure.
    """
    chosen = make_protocol(protocol)
    federated_split = chosen.finish(chosen.split_clients(request), request.seed)
    names = {name for client_split in federated_split.clients for name in client_split.eval_sets}
    for name in sorted(names):
        if name not in EVAL_SETS and not name.startswith(BY_NAME):
            valid = ", ".join([*EVAL_SETS, *(f"{start}NAME" for start in BY_NAME)])
            raise FedPGPError(
                f"protocol {chosen.name}: an eval set is called {name}, which is no figure; its "
                f"name is one of {valid}"
            )
    return federated_split


__all__ = [
    "PROTOCOLS",
    "ClientSplit",
    "EvalProtocol",
    "EvalSet",
    "FederatedSplit",
    "LifelongTask",
    "Phase",
    "SplitRequest",
    "UnknownImages",
    "as_spec",
    "label_of",
    "make_protocol",
    "split_clients",
    "transfer",
]
