"""FedOTP: a shared and a personal prompt, to which the patches of an image are transported (Li et
al., CVPR 2024, arXiv 2403.00041).

    sim[m, i] = cos(patch_m, z_i,c)        i: the shared prompt, the personal prompt
    y_c       = s * sum_m,i T[m, i] sim[m, i]    T: unbalanced transport, cost 1 - sim, no gradient
                                                 through it
    L         = CE(y)

The shared prompt is averaged, the personal one stays. The pooled feature is not used.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import check_choice, check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Images, Method, Params, register
from fedpgp.prompts import starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.transport import plans, similarities


@dataclass(frozen=True)
class FedOTPSettings:
    """Settings of FedOTP.

    Attributes:
        transport: ``unbalanced`` (a patch may send less than its share) or ``balanced``.
        mass: gamma, total mass of an unbalanced plan.
        epsilon: of the entropy.
        threshold, iterations: when Sinkhorn's iteration stops.
    """

    transport: str = "unbalanced"
    mass: float = 0.8
    epsilon: float = 0.01
    threshold: float = 1e-3
    iterations: int = 100

    def __post_init__(self):
        check_choice("method.transport", self.transport, ("unbalanced", "balanced"))
        check_number("method.mass", self.mass, above=0, most=1)
        check_number("method.epsilon", self.epsilon, above=0)
        check_number("method.threshold", self.threshold, least=0)
        check_number("method.iterations", self.iterations, least=1, whole=True)


@register("fedotp")
class FedOTP(Method):
    """Shared: p_G (m, d). Personal: p (m, d)."""

    about = About(
        title="FedOTP",
        paper="Li et al., CVPR 2024",
        family="federated_prompts",
        shared="context",
        personal="second context",
        sent="m*d",
        passes="2",
        official=(
            "declared difference: HongxiaLee/FedOTP at 9948611 stops the transport of a whole "
            "batch at once; exact (run) where it converges"
        ),
        order=10,
    )
    per_image = "shared"
    Settings = FedOTPSettings
    inputs = ("patches",)

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {
            "p_G": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)
        }

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"p": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)}

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        """(K, 1, C, e): all mass goes to the shared prompt."""
        return classes.encoder(self.task.n_ctx)(shared["p_G"].unsqueeze(1))

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        """(K, 2, C, e)."""
        return classes.encoder(self.task.n_ctx)(torch.stack([params["p_G"], params["p"]], dim=1))

    def logits(self, classifier: Tensor, images: Images, classes: ClassSet) -> Tensor:
        s = self.settings
        sim = similarities(images.patches, classifier)
        plan = plans(
            1 - sim,
            s.mass,
            s.epsilon,
            s.threshold,
            s.iterations,
            unbalanced=s.transport == "unbalanced",
        )
        return self.task.logit_scale * (plan * sim).sum((-2, -1))

    def step_work(self, size: StepSize) -> Work:
        return size.texts(2) + size.similarities(2)
