"""Protocols: one file each here, and one YAML in ``conf/protocol/``."""

import dataclasses
from collections.abc import Mapping

from fedpgp.data import Dataset
from fedpgp.errors import FedPGPError, unknown
from fedpgp.protocols.base import (
    PROTOCOLS,
    ClientSplit,
    EvalProtocol,
    EvalSet,
    FederatedSplit,
    Load,
)
from fedpgp.protocols.cross_dataset import as_spec, label_of, transfer


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


def split_clients(
    dataset: Dataset,
    clients: int,
    seed: int,
    shots: int | None,
    protocol: Mapping,
    scheme: Mapping,
    load: Load | None = None,
) -> FederatedSplit:
    """Split a data set over clients.

    Args:
        dataset: with train and test split.
        clients: number of logical clients.
        seed: of everything random in it.
        shots: training images a class (a class and domain, where images are split by
            domain); None keeps all.
        protocol: its ``name`` and options.
        scheme: the partition: ``scheme`` and its options.
        load: finds other data sets, for the protocols that need some.

    Raises:
        FedPGPError: unknown protocol or option; a data set without the split it needs; a
            partition that cannot work.
    """
    chosen = make_protocol(protocol)
    return chosen.finish(chosen.split_clients(dataset, clients, seed, shots, scheme, load), seed)


__all__ = [
    "PROTOCOLS",
    "ClientSplit",
    "EvalProtocol",
    "EvalSet",
    "FederatedSplit",
    "as_spec",
    "label_of",
    "make_protocol",
    "split_clients",
    "transfer",
]
