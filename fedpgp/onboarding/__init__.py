"""Onboarding: what a client that comes later, a newcomer, gets of a trained federation; one file a
way here, chosen by ``protocol.onboard``.

Nothing that a newcomer does reaches a trained client. ``docs/onboarding.md`` lists the ways.
"""

from fedpgp.onboarding.base import (
    ONBOARDINGS,
    Onboarding,
    make_onboarding,
    onboarding_class,
    register,
)
from fedpgp.onboarding.descriptions import describe
from fedpgp.onboarding.fine_tune import fine_tune
from fedpgp.onboarding.newcomers import Newcomer, Onboarded, Trained, state_bytes
from fedpgp.onboarding.terms import blend

__all__ = [
    "ONBOARDINGS",
    "Newcomer",
    "Onboarded",
    "Onboarding",
    "Trained",
    "blend",
    "describe",
    "fine_tune",
    "make_onboarding",
    "onboarding_class",
    "register",
    "state_bytes",
]
