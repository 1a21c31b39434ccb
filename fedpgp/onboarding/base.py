"""What a way of onboarding is: it turns a trained federation and a newcomer into the newcomer's
model.

A way is one file in this folder. It works alike inside a simulation
(:mod:`fedpgp.onboarding.measure`) and on a finished run, whose folder gives the same
:class:`fedpgp.onboarding.newcomers.Trained`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fedpgp.errors import FedPGPError, unknown
from fedpgp.federation import Federation
from fedpgp.methods import Method
from fedpgp.onboarding.descriptions import describe
from fedpgp.onboarding.fine_tune import fine_tune
from fedpgp.onboarding.newcomers import Newcomer, Onboarded, Trained
from fedpgp.protocols.onboarding_options import OnboardingOptions
from fedpgp.registry import Registry


class Onboarding(ABC):
    """A way of onboarding.

    Args:
        options: those of ``protocol=unseen_clients``.
        federation: its method, inputs and training; its split holds the newcomers.
        trained: what came of it.

    Example:
        A way overrides :meth:`start`, where the newcomer begins::

            @register("mean")
            class Mean(Onboarding):
                needs_terms = True

                def start(self, newcomer):
                    terms = list(self.trained.terms.values())
                    state = blend(terms, np.full(len(terms), 1 / len(terms)))
                    return Onboarded(state, bytes_down=state_bytes(state))
    """

    name: ClassVar[str] = ""
    """As in ``protocol.onboard``; :func:`register` sets it."""
    needs_terms: ClassVar[bool] = False
    """Whether trained clients share their private tensors for it."""
    needs_factors: ClassVar[bool] = False
    """Whether those have to be low-rank terms, ``U`` and ``V``."""
    needs_description: ClassVar[bool] = False
    """Whether clients and newcomers are described for it (``protocol.description``)."""
    uses_images: ClassVar[bool] = True
    """Whether its result depends on the newcomer's images."""
    fine_tunes: ClassVar[bool] = True
    """Whether the newcomer trains its private tensors for ``steps`` steps."""
    adjustment: ClassVar[type | None] = None
    """The dataclass of tensors and numbers that its ``adjust`` is an instance of, so that a
    newcomer can keep it; None: it has no ``adjust``."""
    steps_without_images: ClassVar[bool] = False
    """Whether ``steps`` says something although the newcomer trains nothing."""

    def __init__(self, options: OnboardingOptions, federation: Federation, trained: Trained):
        self.options, self.federation, self.trained = options, federation, trained

    @classmethod
    def why_not(cls, options: OnboardingOptions) -> str | None:
        """Return why these options do not go with it; None: they do."""
        images = options.description != "names"
        if cls.needs_description and images and 0 in options.budgets:
            return (
                f"protocol.description={options.description} is made of images, and "
                "protocol.budget=0 has none: take description=names, or another budget"
            )
        return None

    @classmethod
    def why_not_method(cls, options: OnboardingOptions, method: Method) -> str | None:
        """Return why this method does not go with it; None: it does."""
        return None

    @abstractmethod
    def start(self, newcomer: Newcomer) -> Onboarded:
        """Return the newcomer's model before its own training."""

    def onboard(self, newcomers: Sequence[Newcomer]) -> list[Onboarded]:
        """Return each newcomer's model: :meth:`start`, then its own steps on its own images.

        Raises:
            FedPGPError: a newcomer's training has no finite loss.
        """
        started = [self.start(newcomer) for newcomer in newcomers]
        if not self.fine_tunes:
            return started
        states = fine_tune(
            self.federation, self.trained, newcomers, [each.state for each in started], self.options
        )
        return [
            Onboarded(state, each.adjust, each.bytes_up, each.bytes_down)
            for state, each in zip(states, started, strict=True)
        ]

    def describe(self, newcomer: Newcomer) -> np.ndarray:
        """Return the newcomer's description, (n,) float64."""
        about = (self.federation, newcomer.rows, newcomer.labels)
        return describe(self.options.description, *about)


ONBOARDINGS: Registry[type[Onboarding]] = Registry("fedpgp.onboarding", Onboarding)
"""Name -> way. A new file in this folder needs no mention anywhere else."""

register = ONBOARDINGS.register


def make_onboarding(
    name: str, options: OnboardingOptions, federation: Federation, trained: Trained
) -> Onboarding:
    """Return a way by its name.

    Raises:
        FedPGPError: no such way; options or a method that do not go with it; terms that nobody
            shared.
    """
    way = onboarding_class(name, options)
    if why := way.why_not_method(options, federation.method):
        raise FedPGPError(f"protocol.onboard={name}: {why}")
    if way.needs_terms and not trained.terms:
        raise FedPGPError(
            f"protocol.onboard={name} is made of the private tensors of trained clients, and none "
            "is shared: method.share_terms=true is their consent (docs/privacy.md)"
        )
    return way(options, federation, trained)


def onboarding_class(name: str, options: OnboardingOptions) -> type[Onboarding]:
    """Return the class of a way.

    Raises:
        FedPGPError: no such way; options that do not go with it.
    """
    if name not in ONBOARDINGS:
        raise FedPGPError(unknown("way of protocol.onboard", name, ONBOARDINGS))
    if why := ONBOARDINGS[name].why_not(options):
        raise FedPGPError(f"protocol.onboard={name}: {why}")
    return ONBOARDINGS[name]
