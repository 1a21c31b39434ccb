"""PromptFL with FedProx: a pull towards the global context (Li et al., MLSys 2020, arXiv
1812.06127).

    L = CE + mu/2 * ||p - p_G||^2        p: the client's copy, p_G: as received this round

Public prompt-learning code computes the pull on detached tensors, so that it has no gradient; here
it has.
"""

from dataclasses import dataclass

from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Params, StepContext, register
from fedpgp.methods.promptfl import PromptFL
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class FedProxSettings:
    """Settings of FedProx.

    Attributes:
        mu: weight of the pull.
    """

    mu: float = 0.5

    def __post_init__(self):
        check_number("method.mu", self.mu, least=0)


@register("fedprox")
class FedProx(PromptFL):
    """One shared context (m, d), no personal tensor."""

    about = About(
        title="FedProx",
        paper="Li et al., MLSys 2020",
        family="federated",
        shared="context",
        sent="m*d",
        official="exact (read): litian96/FedProx at 6be8d40",
        order=5,
    )
    per_image = "shared"
    Settings = FedProxSettings

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor:
        distance = (params["p_G"] - step.global_params["p_G"]).square().sum((-2, -1))
        return self.settings.mu / 2 * distance
