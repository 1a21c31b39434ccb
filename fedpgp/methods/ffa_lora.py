"""FFA-LoRA: A is drawn once and stays, B is trained and averaged (Sun et al., ICLR 2024,
arXiv 2403.12313), here in CLIP's towers.

    W_i = W + (alpha / b) B_i A
    server: B <- sum_i w_i B_i,  so that B A = sum_i w_i B_i A

The average is exact, half as much is sent, and noise on B is noise on the product, linearly.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedpgp.errors import check_number
from fedpgp.methods.about import About
from fedpgp.methods.base import Params, register
from fedpgp.methods.lora import LoRA, LoRASettings
from fedpgp.seeding import generator
from fedpgp.step_work import StepSize, Work


@dataclass(frozen=True)
class FFALoRASettings(LoRASettings):
    """Settings of FFA-LoRA.

    Attributes:
        a_seed: A is drawn from it, by everybody alike; it is not the run's seed, so that a run
            which goes on from another's B has its A.
    """

    a_seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_number("method.a_seed", self.a_seed, least=0, whole=True)


@register("ffa_lora")
class FFALoRA(LoRA):
    """Shared: B (L, out, b) of each layer. Nothing personal; A is nobody's."""

    about = About(
        title="FFA-LoRA",
        paper="Sun et al., ICLR 2024",
        family="lora",
        learns=("LoRA",),
        shared="B",
        sent="L*len(targets)*rank*d",
        official="no code exists by the authors",
    )
    per_image = "shared"
    Settings = FFALoRASettings
    settings: FFALoRASettings

    @cached_property
    def A(self) -> Params:
        """The frozen A of each layer, (L, b, in)."""
        drawn = self.start_A(generator(self.settings.a_seed, "ffa_lora"))
        return {name: A.to(self.task.device, self.task.dtype) for name, A in drawn.items()}

    def init_shared(self, rng: np.random.Generator) -> Params:
        return self.start_B()

    def adapters(self, params: Params, *more: str) -> Params:
        clients = len(next(iter(params.values())))
        frozen = {name: A.expand(clients, *A.shape) for name, A in self.A.items()}
        return super().adapters({**params, **frozen}, *more)

    def step_work(self, size: StepSize) -> Work:
        return self.work(size, self.settings.rank, trained=0.5)
