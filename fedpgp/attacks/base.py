"""What an attack is: one frozen dataclass, whose fields are its settings.

An attack works on *changes*, by name and in float64: what a client sends minus what it was sent; of
tensors that are sent as a difference already (``Method.delta_params``), these themselves.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpgp.errors import check_number
from fedpgp.protocols import FederatedSplit
from fedpgp.registry import Registry
from fedpgp.seeding import generator

Changes = Mapping[str, np.ndarray]
"""Changes by name, float64."""


@dataclass(frozen=True)
class AttackContext:
    """Where an attack stands.

    Attributes:
        server_round: from 1.
        client: who attacks; -1 where all attackers of a round send the same.
        seed: of the run.
    """

    server_round: int
    client: int
    seed: int

    def rng(self) -> np.random.Generator:
        """The generator of this client's noise in this round."""
        return generator(self.seed, "attack noise", self.client, self.server_round)


@dataclass(frozen=True)
class Attack(ABC):
    """An attack, and the settings that all have.

    Attributes:
        share: fraction of the training clients that attack.
    """

    name: ClassVar[str] = ""
    """As in ``conf/attack/``; :func:`register` sets it."""
    colludes: ClassVar[bool] = False
    """Whether attackers know the honest updates of the round (:meth:`collude`)."""
    measured: ClassVar[bool] = False
    """Whether clients have the eval set :data:`fedpgp.attacks.success.SUCCESS`, of which a rate of
    success is measured."""

    share: float

    def __post_init__(self):
        check_number("attack.share", self.share, above=0, below=1)
        if hasattr(self, "scale"):
            check_number("attack.scale", self.scale, least=0)

    def poison(
        self, federated_split: FederatedSplit, attackers: Sequence[int], seed: int
    ) -> FederatedSplit:
        """Return the split with the attackers' images and labels as they train on them."""
        return federated_split

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        """Return what an attacker sends instead of the change that it trained."""
        return change

    def collude(self, honest: Sequence[Changes], attackers: int, context: AttackContext) -> Changes:
        """Return what every attacker sends, from the honest changes of the round.

        Args:
            honest: one or more changes.
            attackers: how many attackers are in the round.
            context: of the round.
        """
        raise NotImplementedError


ATTACKS: Registry[type[Attack]] = Registry("fedpgp.attacks", Attack)
"""Name -> attack. A new file in this folder needs no mention anywhere else."""

register = ATTACKS.register


def stacked(honest: Sequence[Changes]) -> dict[str, np.ndarray]:
    """Changes by name, (clients, …)."""
    return {name: np.stack([change[name] for change in honest]) for name in honest[0]}
