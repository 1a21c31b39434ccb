"""``privacy=image``: differential privacy at the level of an image inside a client, DP-SGD (Abadi
et al., CCS 2016, arXiv 1607.00133).

    B_t     each of a client's N images by its own draw, with probability q = batch_size / N
    g       sum over b in B_t of clip(gradient of l_b, C) + N(0, (z C)^2 I), over q N
    step    g + the gradient of the terms that no image has

C bounds the L2 norm over all tensors that the client trains together, shared and private; q N is
fixed, whatever was drawn. The training is :mod:`fedpgp.training.private_training`'s; this step is
what the configuration says of it, and the server's account of all clients.

Every step's result is released, to the client's own disk too, so all that follows from it is
post-processing: the optimizer, the average, whatever strategy or server part. So is the gradient of
terms without images (FedPGP's contrast, FedProx's pull): it is a function of the tensors, which are
released results, and of public data, and is added as it is, neither clipped nor noised.

Neighbours are two clients of which one has a blank in the place of an image, which adds zero to
every sum: the number of images is known, as q and the number of steps follow from it. Epsilon of
Poisson sampling is the same as for an image more or less.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpgp.config import PrivacySection
from fedpgp.errors import FedPGPError
from fedpgp.training.image_gradients import why_not
from fedpgp.updates.base import (
    Metrics,
    Range,
    RoundStart,
    ServerContext,
    State,
    StopTraining,
    Update,
    UpdateStep,
    register,
)
from fedpgp.updates.client_privacy import ALONE
from fedpgp.updates.noise_settings import MOST_NOISE, check_noise

MOST_EPSILON = 1e12
"""A client says no larger one: it bounds nothing."""
NO_BOUND = -1.0
"""How a client says that it has no epsilon, for want of noise."""
TRAINS_NO_MORE = "it trains no more"
"""How a client begins to say that its epsilon would pass its bound."""


@dataclass(frozen=True)
class ImagePrivacySettings:
    """Settings of ``privacy=image``.

    Attributes:
        clip: C, largest L2 norm of an image's gradient.
        noise: z, deviation of the noise on the sum over C; 0 only clips. Where epsilon is set, it
            has no meaning, and another value than the default is refused.
        epsilon: of all rounds of the run together, of each client; z follows from it and from the
            client's number of images, as if it took part in every round. None: noise says.
        delta: None: 1 / (10 N), N the client's images.
        accountant: one of :data:`ACCOUNTANTS`.
        max_epsilon: a client trains no more before the round that would exceed it.
        seeded_noise: draw batches and noise from the run's seed, so that it can be repeated; then
            nothing is private.
    """

    clip: float = 1.0
    noise: float = 1.0
    epsilon: float | None = None
    delta: float | None = None
    accountant: str = "rdp"
    max_epsilon: float | None = None
    seeded_noise: bool = False

    def __post_init__(self):
        check_noise(self)

    @property
    def most(self) -> float:
        """The epsilon that a client never passes."""
        return min(self.epsilon or math.inf, self.max_epsilon or math.inf)


def image_privacy_of(config: Mapping) -> ImagePrivacySettings | None:
    """Return the settings of a configuration with ``privacy=image``; None of any other."""
    chosen = PrivacySection.of(config.get("privacy", {}))
    return ImagePrivacySettings(**chosen.options) if chosen.name == "image" else None


@register("image")
class ImagePrivacy(UpdateStep):
    """See the module. Its state: ``accounts``, what each client last said of its own, (K, 6):
    :attr:`COLUMNS`, NaN where it said nothing."""

    Settings = ImagePrivacySettings
    COLUMNS: ClassVar[tuple[str, ...]] = ("epsilon", "delta", "noise", "rate", "steps", "last")
    client_metrics: ClassVar[Mapping[str, Range]] = {
        "epsilon": (NO_BOUND, MOST_EPSILON),
        "delta": (0.0, 1.0),
        "noise": (0.0, MOST_NOISE),
        "rate": (0.0, 1.0),
        "steps": (0.0, 1e12),
        "last": (0.0, 1.0),
        "clipped": (0.0, 1.0),
    }
    """Of the client's images, by its training: ``last`` is 1 where one more round would pass
    ``most``; ``clipped`` is the share of the gradients that were clipped."""

    def check(self, config: Mapping, method) -> None:
        attack = config.get("attack", {}).get("name", "none")
        selection = config["protocol"].get("selection")
        why = None
        if not method.learns:
            why = f"method={method.name}: it learns nothing"
        elif (reason := why_not(method)) is not None:
            why = reason
        elif config["runtime"]["name"] == "flower" and selection == "validation":
            why = (
                "protocol.selection=validation in a deployment: no accuracy leaves a client by "
                "which a round could be chosen; take last"
            )
        elif config["protocol"].get("adapt_epochs"):
            why = "protocol.adapt_epochs: clients that adapt train without noise; take 0"
        elif attack not in ("none", *ALONE):
            why = (
                f"attack={attack}: what its attackers send may be made of other clients' data; "
                f"take one of {', '.join(ALONE)}"
            )
        if why:
            raise FedPGPError(f"privacy=image does not go with {why}")

    def able(self, clients: Sequence[int], context: RoundStart) -> list[int]:
        last = self._accounts(context.state, context.num_clients)[:, self.COLUMNS.index("last")]
        return [client for client in clients if last[client] != 1]

    def before_round(self, context: RoundStart) -> None:
        accounts = self._accounts(context.state, context.num_clients)
        spent = accounts[accounts[:, self.COLUMNS.index("last")] == 1]
        if len(spent) < context.num_trainers:
            return
        if np.isnan(spent).any():  # nodes, which say no more than that
            raise StopTraining(f"each of the {len(spent)} clients says that {TRAINS_NO_MORE}")
        raise StopTraining(
            f"one more would make epsilon of every client larger than {self.settings.most:g}"
        )

    def left_out(self, reasons: Mapping[int, str], context: RoundStart) -> bool:
        """A client's word is of itself alone."""
        accounts, last = (
            self._accounts(context.state, context.num_clients),
            self.COLUMNS.index("last"),
        )
        spent = [c for c, reason in reasons.items() if reason.startswith(TRAINS_NO_MORE)]
        new = [client for client in spent if accounts[client, last] != 1]
        if new:
            accounts[new, last] = 1
            context.state["accounts"] = accounts
        return bool(new)

    def on_server(self, aggregate: Update, context: ServerContext) -> tuple[Update, Metrics]:
        accounts = self._accounts(context.state, context.num_clients)
        known = {client: said for client, said in context.metrics.items() if said}
        if not known:  # nobody counts, or nodes of a deployment, which keep their accounts
            return aggregate, {}
        for client, said in known.items():
            accounts[client] = [said[column] for column in self.COLUMNS]
        context.state["accounts"] = accounts
        told = {"clipped": float(np.mean([said["clipped"] for said in known.values()]))}
        worst = self._worst(accounts)
        if worst is not None and worst["epsilon"] != NO_BOUND:
            told["epsilon"] = worst["epsilon"]
        return aggregate, told

    def after_rollback(self, lost: State, restored: State) -> State:
        """What was spent is spent: of each client the account with more steps."""
        if "accounts" not in lost:
            return restored
        accounts = self._accounts(lost, len(lost["accounts"]))
        earlier = self._accounts(restored, len(accounts))
        steps = self.COLUMNS.index("steps")
        more = np.nan_to_num(earlier[:, steps]) > np.nan_to_num(accounts[:, steps])
        return {**restored, "accounts": np.where(more[:, None], earlier, accounts)}

    def privacy(self, state: State, rounds: int) -> dict | None:
        """Of the client whose epsilon is largest. The nodes of a deployment keep their accounts:
        what the server knows is the configuration, and ``at_most``, the epsilon that none of them
        passes (None: it sets none)."""
        if not rounds:
            return None
        s, worst = self.settings, self._worst(state["accounts"]) if "accounts" in state else None
        about = {"clip": s.clip, "accountant": s.accountant, "seeded": s.seeded_noise}
        if worst is None:
            return {
                "unit": "image",
                "epsilon": None,
                "delta": s.delta,
                "noise_multiplier": s.noise if s.epsilon is None else None,
                "sampling": "poisson",
                "rate": None,
                "rounds": rounds,
                **about,
                "kept_by": "nodes",
                "at_most": s.most if math.isfinite(s.most) else None,
            }
        return {
            "unit": "image",
            "epsilon": None if worst["epsilon"] == NO_BOUND else worst["epsilon"],
            "delta": worst["delta"],
            "noise_multiplier": worst["noise"],
            "sampling": "poisson" if worst["rate"] < 1 else "full",
            "rate": worst["rate"],
            "rounds": rounds,
            **about,
        }

    def _accounts(self, state: State, clients: int) -> np.ndarray:
        known = state.get("accounts")
        if known is None:
            return np.full((clients, len(self.COLUMNS)), np.nan)
        return np.array(known)

    def _worst(self, accounts: np.ndarray) -> dict[str, float] | None:
        known = accounts[~np.isnan(accounts[:, 0])]
        if not len(known):
            return None
        epsilons = np.where(known[:, 0] == NO_BOUND, np.inf, known[:, 0])
        return dict(zip(self.COLUMNS, known[epsilons.argmax()].tolist(), strict=True))
