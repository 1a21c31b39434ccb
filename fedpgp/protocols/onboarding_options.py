"""How clients that never train are onboarded: options of ``protocol=unseen_clients``."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpgp.errors import FedPGPError, check_choice, check_number

DESCRIPTIONS = ("names", "features", "histogram")


@dataclass(frozen=True)
class OnboardingOptions:
    """Options of onboarding (:mod:`fedpgp.onboarding`).

    Attributes:
        onboard: a way, or a list of ways that are compared after the training; ``global`` alone
            measures nothing more.
        budget: images of each class that a newcomer may use, or a list; None: all that it has.
        steps: of a newcomer's own training, or a list.
        onboard_lr: learning rate of these steps; None: the run's.
        description: what is told of a client: one of :data:`DESCRIPTIONS`.
        top_k: K, how many trained clients a newcomer's term is made of.
        tau: temperature of their weights, softmax(cos / tau).
        decode: what becomes a term of the autoencoder: the ``mean`` of its latent, or a ``draw``.
        alpha, beta: weight and sharpness of the memory.
        others: chance that an image is of a class that the newcomer does not know to have.
    """

    onboard: str | Sequence[str] = "global"
    budget: int | None | Sequence[int | None] = 4
    steps: int | Sequence[int] = 20
    onboard_lr: float | None = None
    description: str = "names"
    top_k: int = 4
    tau: float = 0.05
    decode: str = "mean"
    alpha: float = 3.0
    beta: float = 2.0
    others: float = 0.05

    def check_onboarding(self) -> None:
        """Refuse values that cannot work.

        Raises:
            FedPGPError: naming the option and what is valid.
        """
        if not self.ways:
            raise FedPGPError("protocol.onboard=[] names no way; take global")
        for budget in self.budgets or (-1,):
            if budget is not None:
                advice = ", or null for all images"
                check_number("protocol.budget", budget, least=0, whole=True, otherwise=advice)
        for steps in self.steps_of or (-1,):
            check_number("protocol.steps", steps, least=0, whole=True)
        if self.onboard_lr is not None:
            check_number("protocol.onboard_lr", self.onboard_lr, above=0)
        check_choice("protocol.description", self.description, DESCRIPTIONS)
        check_number("protocol.top_k", self.top_k, least=1, whole=True)
        check_number("protocol.tau", self.tau, above=0)
        check_choice("protocol.decode", self.decode, ("mean", "draw"))
        check_number("protocol.alpha", self.alpha, least=0)
        check_number("protocol.beta", self.beta, above=0)
        check_number("protocol.others", self.others, above=0, below=1)

    @property
    def ways(self) -> list[str]:
        """The ways of ``onboard``, each once."""
        return _listed(self.onboard)

    @property
    def budgets(self) -> list[int | None]:
        """The values of ``budget``, each once."""
        return _listed(self.budget)

    @property
    def steps_of(self) -> list[int]:
        """The values of ``steps``, each once."""
        return _listed(self.steps)


def _listed(value: object) -> list:
    return list(dict.fromkeys(value if isinstance(value, list | tuple) else [value]))
