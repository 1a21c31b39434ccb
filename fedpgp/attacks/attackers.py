"""The clients that attack a run: who they are, and what they do to its data and its updates."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpgp.arrays import Arrays
from fedpgp.attacks.base import ATTACKS, Attack, AttackContext
from fedpgp.errors import FedPGPError, unknown
from fedpgp.protocols import FederatedSplit
from fedpgp.seeding import generator

NONE = "none"
"""The choice of a run without an attack."""


@dataclass(frozen=True)
class Attackers:
    """An attack on one run.

    Attributes:
        attack: what they do.
        clients: logical ids of those that do it, ascending.
        delta_params: shared tensors that are sent as a difference (``Method.delta_params``).
        seed: of the run.
    """

    attack: Attack
    clients: tuple[int, ...]
    delta_params: tuple[str, ...]
    seed: int

    def forge(
        self, client: int, update: Arrays, global_params: Arrays, server_round: int
    ) -> Arrays:
        """Return what a client sends: its update, or what its attack makes of it.

        Args:
            client: honest or not.
            update: the shared tensors as the client trained them.
            global_params: as the server sent them.
            server_round: from 1.
        """
        if client not in self.clients or self.attack.colludes or not update:
            return update
        change = self._change(update, global_params)
        context = AttackContext(server_round, client, self.seed)
        return self._update(self.attack.forge(change, context), global_params)

    def collude(
        self, updates: Mapping[int, Arrays], global_params: Arrays, server_round: int
    ) -> dict[int, Arrays]:
        """Return what each attacker of a round sends, where it knows the honest updates; nothing
        where it does not, or nobody honest is there.

        Args:
            updates: client -> its update, of all clients of the round.
            global_params: as the server sent them.
            server_round: from 1.
        """
        mine = [client for client in self.clients if client in updates]
        honest = [
            self._change(updates[client], global_params)
            for client in sorted(updates)
            if client not in self.clients
        ]
        if not self.attack.colludes or not mine or not honest or not global_params:
            return {}
        change = self.attack.collude(honest, len(mine), AttackContext(server_round, -1, self.seed))
        return dict.fromkeys(mine, self._update(change, global_params))

    def _change(self, update: Arrays, global_params: Arrays) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(update[name], dtype=np.float64) - self._origin(name, tensor)
            for name, tensor in global_params.items()
        }

    def _update(self, change: Arrays, global_params: Arrays) -> dict[str, np.ndarray]:
        return {
            name: (change[name] + self._origin(name, tensor)).astype(tensor.dtype)
            for name, tensor in global_params.items()
        }

    def _origin(self, name: str, tensor: np.ndarray) -> np.ndarray | float:
        return 0.0 if name in self.delta_params else np.asarray(tensor, dtype=np.float64)


def make_attack(config: Mapping) -> Attack | None:
    """The attack of a configuration; None without one.

    Raises:
        FedPGPError: unknown attack, setting or value; a deployment.
    """
    chosen = dict(config.get("attack") or {"name": NONE})
    name = chosen.pop("name")
    if name == NONE:
        return None
    if name not in ATTACKS:
        raise FedPGPError(unknown("attack", name, [NONE, *ATTACKS]))
    if config["runtime"]["name"] == "flower":
        raise FedPGPError(
            f"attack={name} is for a simulation (runtime=ray or inline): the clients of a "
            "deployment are real, and their updates and images are not tampered with"
        )
    attack = ATTACKS[name]
    valid = [field.name for field in dataclasses.fields(attack)]
    for setting in chosen:
        if setting not in valid:
            raise FedPGPError(unknown(f"setting of attack {name}", setting, valid))
    try:
        return attack(**chosen)
    except TypeError as error:
        raise FedPGPError(f"attack={name}: {error}") from error


def attackers_of(
    config: Mapping, federated_split: FederatedSplit, delta_params: tuple[str, ...] = ()
) -> Attackers | None:
    """The attackers of a configuration's run, drawn among the clients that train; None without an
    attack.

    Raises:
        FedPGPError: as :func:`make_attack`; nobody honest would be left.
    """
    attack = make_attack(config)
    if attack is None:
        return None
    able = [
        c for c, own in enumerate(federated_split.clients) if own.trains and len(own.train_indices)
    ]
    clients = drawn_attackers(attack, able, config["seed"])
    return Attackers(attack, clients, tuple(delta_params), config["seed"])


def drawn_attackers(attack: Attack, able: Sequence[int], seed: int) -> tuple[int, ...]:
    """Draw the clients that attack from (seed, "attack"), ascending.

    Args:
        attack: what they do; its share is of ``able``.
        able: clients that train on images.
        seed: of the run.

    Raises:
        FedPGPError: nobody honest would be left.
    """
    number = max(1, round(attack.share * len(able)))
    if number >= len(able):
        raise FedPGPError(
            f"attack.share={attack.share:g} of {len(able)} training clients leaves nobody honest"
        )
    drawn = generator(seed, "attack").choice(able, size=number, replace=False)
    return tuple(sorted(int(client) for client in drawn))


def poisoned(config: Mapping, federated_split: FederatedSplit) -> FederatedSplit:
    """The split as attackers train on it; the same object without an attack.

    Raises:
        FedPGPError: as :func:`attackers_of`.
    """
    attackers = attackers_of(config, federated_split)
    if attackers is None:
        return federated_split
    return attackers.attack.poison(federated_split, attackers.clients, attackers.seed)
