"""FedPer on prompts: the first half of the context is shared, the second half is personal
(Arivazhagan et al., arXiv 1912.00818, who share the first layers of a network; the split of a
context is PromptFolio's repository's).

    p_i = [p_G; p_L,i]        m/2 (rounded down) shared tokens, then the client's own
"""

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError
from fedpgp.methods.about import About
from fedpgp.methods.base import Method, Params, register
from fedpgp.prompts import starting_context
from fedpgp.task import ClassSet


@register("fedper")
class FedPer(Method):
    """Shared: p_G (m//2, d). Personal: p (m - m//2, d)."""

    about = About(
        title="FedPer",
        paper="Arivazhagan et al., 2019",
        family="federated",
        shared="first half of the context",
        personal="second half",
        sent="m//2*d",
        official="exact (read): PanBikang/PromptFolio at 8f729aa; none by the authors",
        order=6,
    )
    per_image = "shared"
    starts_as_shared = True

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {"p_G": self._start(rng)[: self.task.n_ctx // 2]}

    def init_personal(self, rng: np.random.Generator) -> Params:
        return {"p": self._start(rng)[self.task.n_ctx // 2 :]}

    def _start(self, rng: np.random.Generator) -> Tensor:
        if self.task.n_ctx < 2:
            raise FedPGPError(
                "method=fedper shares one half of the context and keeps the other: n_ctx is 2 "
                "or more"
            )
        return starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        """The shared half alone, as a shorter context."""
        return classes.encoder(self.task.n_ctx // 2)(shared["p_G"])

    def personal_classifier(self, params: Params, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(torch.cat([params["p_G"], params["p"]], dim=-2))
