"""``privacy=client``: differential privacy at the level of a client, DP-FedAvg (McMahan et al.,
ICLR 2018, arXiv 1710.06963).

    S_t        each client by its own draw, with probability q = ``participation``
    D_k        the client's change over all shared tensors together, scaled to a norm of C at most
    p_(t+1)  = p_t + (sum_k D_k + N(0, (z C)^2 I)) / (q N)

q N is fixed: N clients can train, however many were drawn; a client that was drawn and failed, and
one whose update has no finite norm, add zero. What a strategy does with the result (momentum,
Adam) is post-processing. In the server's view everything is clear: the guarantee is for those
who see the global prompts.

``adaptive_clip``: C follows a quantile of the updates' norms (Andrew et al., NeurIPS 2021,
arXiv 1905.03871, Algorithm 1). With b_k = 1 where the norm is C at most, else 0:

    z_sum    = (z^-2 - (2 s)^-2)^(-1/2)                     deviation of the sum's noise over C
    f        = 1/2 + (sum_k (b_k - 1/2) + N(0, s^2)) / (q N)
    C_(t+1)  = C_t exp(-rate (f - quantile))

b_k - 1/2 travels as one more tensor of the update, and nowhere in the clear. Sum and count together
cost what the sum alone costs with z.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from fedpgp.errors import FedPGPError, check_choice, check_number
from fedpgp.seeding import generator, secret_normal, secret_uniform
from fedpgp.updates.accounting import (
    calibrate,
    epsilon,
    resolve_delta,
    sum_noise,
)
from fedpgp.updates.base import (
    ClientContext,
    Metrics,
    RoundStart,
    ServerContext,
    State,
    StopTraining,
    Update,
    UpdateStep,
    register,
)
from fedpgp.updates.clipping import clipped
from fedpgp.updates.gaussian import standard_normal
from fedpgp.updates.noise_settings import check_noise

LINEAR = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
"""Strategies that need nothing but the mean of the updates."""
ALONE = ("sign_flip", "scaling", "noise", "free_rider", "label_flip", "canary")
"""Attacks whose clients use nothing but their own data: what they send is clipped as all is."""
REACHED = 0.999
"""Part of the clipping norm from which on an update counts as clipped: the client's own clipping is
followed by a rounding to the run's precision."""
SEEDED_NOISE = (
    "privacy.seeded_noise=true: clients and noise are drawn from the run's seed, so that the run "
    "can be repeated: who knows the seed takes the noise off again, and nothing is private"
)
"""What a person should know."""
UNCLIPPED = "unclipped"
"""The tensor that says whether an update is as long as it was: b_k - 1/2."""
LEAST_COUNT_NOISE = 1 / 20
"""Of the clients that a round expects: the paper's noise on the count (its section 3.1)."""


@dataclass(frozen=True)
class ClientPrivacySettings:
    """Settings of ``privacy=client``.

    Attributes:
        clip: C, largest L2 norm of a client's update.
        noise: z, deviation of the noise on the sum over C; 0 only clips. Where epsilon is set,
            it has no meaning, and another value than the default is refused.
        epsilon: of all rounds of the run together; z follows from it. None: noise says; infinite:
            no noise, updates are only clipped.
        delta: None: 1 / (10 N).
        accountant: one of :data:`ACCOUNTANTS`.
        max_epsilon: the training ends before the round that would exceed it; None: it does not.
        seeded_noise: draw clients and noise from the run's seed, so that it can be repeated; then
            nothing is private.
        adaptive_clip: C follows a quantile of the norms; ``clip`` is the first.
        target_quantile: the share of the updates that should not be clipped.
        clip_rate: of C's change; the paper's eta_C.
        count_noise: s, deviation of the noise on the count of unclipped updates. None: a twentieth
            of the clients that a round expects, and z at least: z_sum is 1.16 z at most.
    """

    clip: float = 1.0
    noise: float = 1.0
    epsilon: float | None = None
    delta: float | None = None
    accountant: str = "rdp"
    max_epsilon: float | None = None
    seeded_noise: bool = False
    adaptive_clip: bool = False
    target_quantile: float = 0.5
    clip_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self):
        check_noise(self, infinite=True)
        check_choice("privacy.adaptive_clip", self.adaptive_clip, (False, True))
        check_number("privacy.target_quantile", self.target_quantile, above=0, below=1)
        check_number("privacy.clip_rate", self.clip_rate, above=0, below=math.inf)
        if self.count_noise is not None:
            check_number("privacy.count_noise", self.count_noise, above=0, below=math.inf)


@register("client")
class ClientPrivacy(UpdateStep):
    """See the module. Its state: ``spent``, the noised sums so far; ``drawn``, who takes part in
    ``drawn_for``, the next round; ``noise`` and ``delta`` of the run; ``rate``. With adaptive
    clipping: ``clip``, the next C, ``count_noise`` and ``sum_noise``, z_sum."""

    Settings = ClientPrivacySettings
    equal_weights = True
    combines = True

    def check(self, config: Mapping, method) -> None:
        strategy = config["strategy"]["name"]
        attack = config.get("attack", {}).get("name", "none")
        selection = config["protocol"].get("selection")
        why = None
        if not method.learns or not method.init_shared(np.random.default_rng(0)):
            why = f"method={method.name}: nothing leaves a client that could be protected"
        elif method.needs_each_update:
            why = (
                f"method={method.name}: its server reads each client's update by itself; only "
                "their sum is noised"
            )
        elif method.update_steps() or config.get("updates"):
            why = (
                "another update step (method.epsilon of dp_fpl, updates=[…]): what it makes of an "
                "update is not in the account"
            )
        elif strategy not in LINEAR or config["strategy"].get("wrap"):
            name = f"strategy={strategy}" if strategy not in LINEAR else "strategy.wrap"
            why = (
                f"{name}: it looks at updates one by one, and only their sum is noised; take one "
                f"of {', '.join(LINEAR)}"
            )
        elif config["runtime"]["name"] == "flower" and selection == "validation":
            why = (
                "protocol.selection=validation in a deployment: no accuracy leaves a client by "
                "which a round could be chosen; take last"
            )
        elif attack not in ("none", *ALONE):
            why = (
                f"attack={attack}: what its attackers send may be made of other clients' data, so "
                "that one client could move the sum farther than privacy.clip; take one of "
                f"{', '.join(ALONE)}"
            )
        elif config.get("first_round") == "all" and config["participation"] < 1:
            why = "first_round=all: each client has to be drawn in every round; take sampled"
        elif config["runtime"]["min_clients"] > 1:
            why = "runtime.min_clients: a round with few clients, or none, has to count; take 1"
        if why:
            raise FedPGPError(f"privacy=client does not go with {why}")

    def on_client(self, update: Update, context: ClientContext) -> tuple[Update, Metrics]:
        clip = float(context.broadcast.get("clip", self.settings.clip))
        bounded, before = clipped({n: t[None] for n, t in update.items()}, clip)
        unclipped = not before.item() > clip
        sent = update if unclipped else {n: t[0] for n, t in bounded.items()}
        if self.settings.adaptive_clip:
            sent = {
                **sent,
                UNCLIPPED: torch.tensor([0.5 if unclipped else -0.5], dtype=torch.float64),
            }
        return sent, {}

    def extra_tensors(self) -> dict[str, tuple[int, ...]]:
        return {UNCLIPPED: (1,)} if self.settings.adaptive_clip else {}

    def broadcast(self, state: State) -> dict[str, float]:
        return {"clip": state["clip"]} if "clip" in state else {}

    def prepare(self, context: RoundStart) -> None:
        s, state = self.settings, context.state
        if "spent" in state:  # the run is resumed
            return
        rate, (noise, delta) = float(context.participation), self._noise(context)
        state |= {"noise": noise, "delta": delta, "rate": rate, "spent": 0}
        if s.adaptive_clip:
            expected = rate * context.num_trainers
            usual = max(LEAST_COUNT_NOISE * expected, noise) if noise > 0 else 0.0
            count_noise = usual if s.count_noise is None else s.count_noise
            state |= {"clip": float(s.clip), "count_noise": float(count_noise)}
            state["sum_noise"] = sum_noise(noise, count_noise)
        self._draw(state, context.server_round, context.num_clients, context.seed)

    def _noise(self, context: RoundStart) -> tuple[float, float]:
        """z and delta of a run; z from epsilon, the clients that can train, rate and rounds."""
        s, delta = self.settings, resolve_delta(self.settings.delta, context.num_trainers)
        if s.epsilon is None:
            return float(s.noise), delta
        if s.epsilon == math.inf:
            return 0.0, delta
        about = float(context.participation), context.num_rounds, delta, s.accountant
        return float(_calibrated(s.epsilon, *about)), delta

    def before_round(self, context: RoundStart) -> None:
        s, spent = self.settings, context.state["spent"]
        bounds = {"max_epsilon": s.max_epsilon}
        if spent >= context.server_round:  # sums that no checkpoint has any more
            bounds["epsilon"] = s.epsilon
        for name, most in bounds.items():
            if most is not None and (after := self._epsilon(context.state, spent + 1)) > most:
                raise StopTraining(
                    f"one more would make epsilon {after:.3g}, above privacy.{name}={most:g}"
                )

    def draw(self, able: Sequence[int], context: RoundStart) -> list[int]:
        state = context.state
        if state["drawn_for"] != context.server_round:  # cannot be: it was drawn with the last one
            raise FedPGPError(
                f"round {context.server_round}: the clients were drawn for round "
                f"{state['drawn_for']}; start the run anew"
            )
        return sorted(set(state["drawn"]) & set(able))

    def combine(
        self, updates: Mapping[int, Update], context: ServerContext
    ) -> tuple[Update, Metrics]:
        clip = context.state.get("clip", self.settings.clip)
        shapes = {n: tuple(t.shape) for n, t in context.global_params.items()}
        total = {n: torch.zeros(s).double() for n, s in (shapes | self.extra_tensors()).items()}
        reached = 0
        for client in sorted(updates):
            change = {name: updates[client][name] for name in shapes}
            # Once more: rounding to the run's precision may have made it longer than C.
            bounded, before = clipped({n: t[None] for n, t in change.items()}, clip)
            if torch.isfinite(before).all():
                counted = {n: updates[client][n].clamp(-0.5, 0.5) for n in self.extra_tensors()}
                bounded = {n: t[0] for n, t in bounded.items()} | counted
                total = {name: t + bounded[name] for name, t in total.items()}
                reached += before.item() > REACHED * clip
        change, told = self.released(total, context)
        return change, told | ({"clipped": reached / len(updates)} if updates else {})

    def released(self, total: Update, context: ServerContext) -> tuple[Update, Metrics]:
        """Return what the server makes of the sum of clipped updates: noise on it, over a fixed
        denominator; and what is said of it. It counts the round, and draws the next one's clients.

        Args:
            total: the sum, and that of :meth:`extra_tensors`.
            context: of the round.
        """
        s, state = self.settings, context.state
        clip = state.get("clip", s.clip)
        rng = None
        if s.seeded_noise:
            rng = generator(context.seed, "privacy noise", context.server_round)
        deviations = dict.fromkeys(context.global_params, state.get("sum_noise", state["noise"]))
        deviations = {name: deviation * clip for name, deviation in deviations.items()}
        deviations |= dict.fromkeys(self.extra_tensors(), state.get("count_noise", 0.0))
        noised = {
            name: t + deviations[name] * standard_normal(tuple(t.shape), rng)
            if deviations[name] > 0
            else t
            for name, t in total.items()
        }
        return self._counted(noised, context)

    def _counted(self, noised: Update, context: ServerContext) -> tuple[Update, Metrics]:
        """As :meth:`released`, of a sum that has its noise."""
        s, state = self.settings, context.state
        expected, told = state["rate"] * context.num_trainers, {}
        mean = {name: t / expected for name, t in noised.items()}
        if s.adaptive_clip:
            told["clip"] = clip = state["clip"]
            share = 0.5 + mean.pop(UNCLIPPED).item()
            state["clip"] = clip * math.exp(-s.clip_rate * (share - s.target_quantile))
        state["spent"] += 1
        self._draw(state, context.server_round + 1, context.num_clients, context.seed)
        if math.isfinite(so_far := self._epsilon(state, state["spent"])):
            told["epsilon"] = so_far
        return mean, told

    def sum_limits(self, state: State) -> dict[str, float]:
        clip = state.get("clip", self.settings.clip)
        deviation = clip * state.get("sum_noise", state["noise"])
        limits = {"largest": clip, "noise": deviation, "clip": clip}
        if self.settings.adaptive_clip:
            # The count in the same units, so that the same noise is on it: z_sum C stands for s.
            limits["count_unit"] = unit = deviation / state["count_noise"]
            limits["largest"] = max(clip, unit / 2)
        return limits

    def in_sum(self, update: Update, limits: Mapping[str, float]) -> Update:
        extra = {name: update[name].clamp(-0.5, 0.5) for name in self.extra_tensors()}
        change = {name: t for name, t in update.items() if name not in extra}
        # Once more: rounding to the run's precision may have made it longer than C.
        bounded, before = clipped({n: t[None] for n, t in change.items()}, limits["clip"])
        if not torch.isfinite(before).all():
            return {name: torch.zeros_like(t) for name, t in update.items()}
        bounded = {name: t[0] for name, t in bounded.items()}
        return bounded | {name: t * limits["count_unit"] for name, t in extra.items()}

    def check_sum(self, limits: Mapping[str, float], context: RoundStart) -> None:
        """See the base class: the clip, the noise, which is calibrated here once more, and a round
        of those that the noise is for."""
        s, clip, noise = self.settings, limits["clip"], limits["noise"]
        if not s.adaptive_clip and clip != s.clip:
            raise FedPGPError(f"the server says a clip of {clip:g}; privacy.clip={s.clip:g}")
        if not 1 <= context.server_round <= context.num_rounds:
            raise FedPGPError(
                f"the server asks for round {context.server_round} of {context.num_rounds}"
            )
        wanted, found = self._noise(context)[0], noise / clip
        if s.adaptive_clip and noise > 0:  # the sum's and the count's together
            found = (found**-2 + (2 * noise / limits["count_unit"]) ** -2) ** -0.5
        if not found >= wanted * (1 - 1e-9):
            raise FedPGPError(
                f"the server says noise of {found:.6g} times the clip on the sum; this run's "
                f"privacy asks for {wanted:.6g}"
            )

    def noise_in_sum(self, size: int, seed: int, client: int, server_round: int) -> np.ndarray:
        if not self.settings.seeded_noise:
            return secret_normal((size,))
        return generator(seed, "privacy noise", server_round, client).normal(size=size)

    def combine_sum(self, total: Update, context: ServerContext) -> tuple[Update, Metrics]:
        unit = self.sum_limits(context.state).get("count_unit")
        total = dict(total) | {name: total[name] / unit for name in self.extra_tensors()}
        return self._counted(total, context)

    def privacy(self, state: State, rounds: int) -> dict | None:
        s = self.settings
        if "spent" not in state:
            return None
        spent = self._epsilon(state, state["spent"])
        return {
            "unit": "client",
            "epsilon": spent if math.isfinite(spent) else None,
            "delta": state["delta"],
            "noise_multiplier": state["noise"],
            "clip": state.get("clip", s.clip),
            "sampling": "poisson" if state["rate"] < 1 else "full",
            "rate": state["rate"],
            "rounds": state["spent"],
            "accountant": s.accountant,
            "seeded": s.seeded_noise,
            **self._adaptive(state),
        }

    def _adaptive(self, state: State) -> dict:
        """What the summary says of adaptive clipping."""
        if not self.settings.adaptive_clip:
            return {}
        return {
            "adaptive_clip": {
                "target_quantile": self.settings.target_quantile,
                "sum_noise_multiplier": state["sum_noise"],
                "count_noise": state["count_noise"],
            }
        }

    def _epsilon(self, state: State, rounds: int) -> float:
        about = (state["noise"], state["rate"], rounds, state["delta"])
        return epsilon(*about, self.settings.accountant)

    def _draw(self, state: State, server_round: int, clients: int, seed: int) -> None:
        """Draw who takes part in a round, before the round before it is saved: a run that is killed
        and resumed cannot be given another sample."""
        if self.settings.seeded_noise:
            uniform = generator(seed, "privacy participants", server_round).random(clients)
        else:
            uniform = secret_uniform(clients)
        state["drawn"] = [int(client) for client in np.flatnonzero(uniform < state["rate"])]
        state["drawn_for"] = server_round


_calibrated = lru_cache(maxsize=16)(calibrate)
