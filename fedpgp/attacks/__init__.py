"""Attacks: what some of the clients of a simulation do to the others; one file each here, and one
YAML in ``conf/attack/``.

Strategies are tried with them (docs/robustness.md). A deployment refuses all of them.
"""

from fedpgp.attacks.attackers import (
    Attackers,
    attackers_of,
    drawn_attackers,
    make_attack,
    poisoned,
)
from fedpgp.attacks.base import ATTACKS, Attack, AttackContext

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackContext",
    "Attackers",
    "attackers_of",
    "drawn_attackers",
    "make_attack",
    "poisoned",
]
