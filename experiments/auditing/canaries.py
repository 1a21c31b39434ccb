"""Canary clients: a lower bound of epsilon."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from experiments.auditing.victim import NotTried, Victim
from experiments.settings import composed
from fedpgp.attacks import attackers_of
from fedpgp.attacks.base import AttackContext
from fedpgp.attacks.canary import direction, included
from fedpgp.audit.bounds import epsilon_bound
from fedpgp.seeding import generator
from fedpgp.updates.client_privacy import ClientPrivacySettings


def canaries(victim: Victim, runs: int, summary: Mapping) -> dict:
    """Return the bound that canary clients give, seen in the global tensors of all rounds.

    Args:
        victim: what is attacked.
        runs: with half of the clients as canaries each.
        summary: of the run, for its delta.
    """
    if not victim.whole.models.initial_shared():
        raise NotTried("the method shares nothing")
    privacy, claim = victim.config.get("privacy", {}), summary.get("privacy") or {}
    scale = privacy.get("clip", ClientPrivacySettings.clip)
    attack = {**composed(["attack=canary", "runtime=inline"])["attack"], "scale": scale}
    scores, coins = [], []
    for number in range(runs):
        victim.progress(number, runs, "runs with canaries")
        seed = int(generator(victim.seed, "canary run", number).integers(2**31))
        config = {**victim.config, "attack": attack, "seed": seed}
        with victim.run(config, victim.split) as (recorded, federation):
            delta_params = federation.method.delta_params
            who = attackers_of(config, victim.split, delta_params).clients
            names = [n for n in recorded.shared[0] if n not in delta_params]
            moved = {
                n: np.subtract(recorded.shared[-1][n], recorded.shared[0][n], dtype=float)
                for n in names
            }
            shapes = {n: np.shape(a) for n, a in recorded.shared[0].items()}
            for client in who:
                own = direction(shapes, AttackContext(1, client, seed))
                scores.append(sum(float((own[n] * moved[n]).sum()) for n in names))
                coins.append(included(seed, client))
    victim.progress(runs, runs, "runs with canaries")
    return asdict(epsilon_bound(scores, coins, delta=claim.get("delta") or 0.0))
