"""What a client adds to the shared context in FedPGP: the low-rank term, and others from low-rank
research.

Each term says which tensors it has, how they make the personal context, and, where it is not plain
gradient descent, what becomes of their gradients. U is (m, b), V is (b, d); g is the gradient of
the loss at the personal context.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedpgp.methods.base import Params
from fedpgp.prompts import low_rank_term, normal, personal_context
from fedpgp.task import Task


class TermSettings(Protocol):
    """What the terms read of their method's settings
    (:class:`fedpgp.methods.fedpgp.FedPGPSettings`)."""

    rank: int
    personal_init: str
    images_a_rank: int
    experts: int


class LowRank:
    """``p_i = p_G + U V`` (FedPGP). With ``images_a_rank`` n a client of N images has
    rank ceil(N / n), at most b: the other columns of U count as zero, so that all clients
    still train together."""

    buffers: ClassVar[tuple[str, ...]] = ("columns",)

    def __init__(self, settings: TermSettings, task: Task):
        self.settings, self.task = settings, task

    def shared(self, rng: np.random.Generator) -> Params:
        """Tensors the server owns beside p_G."""
        return {}

    def start(self, rng: np.random.Generator) -> Params:
        """The personal tensors."""
        u, v = self._factors(rng)
        return {"U": u, "V": v}

    def precompute(self, params: Params, images: Callable[[], Tensor]) -> Params:
        """Tensors of a round; ``images()`` (K, 1): how many each client has."""
        if not self.settings.images_a_rank:
            return {}
        rank = (images() / self.settings.images_a_rank).ceil().clamp(min=1)
        return {
            "columns": (torch.arange(self.settings.rank, device=rank.device) < rank).to(
                params["U"].dtype
            )
        }

    def context(self, params: Params) -> Tensor:
        """p_i, (K, m, d)."""
        u = params["U"] * params["columns"].unsqueeze(-2) if "columns" in params else params["U"]
        return personal_context(params["p_G"], u, params["V"])

    def fit(self, params: Params, gradient: Callable[[], Tensor], lr: float) -> None:
        """Before a round's first step; may change ``params`` in place. ``gradient()`` is
        that of the loss at p_i."""

    def change(self, grads: Params, params: Params) -> Params:
        """What the optimizer gets in the place of these gradients."""
        return grads

    def _factors(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        s = self.settings
        return low_rank_term(self.task.n_ctx, self.task.clip.width, s.rank, s.personal_init, rng)

    def _start(self, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        return torch.zeros(shape) if self.settings.personal_init == "zero" else normal(shape, rng)


class Nothing(LowRank):
    """``p_i = p_G``: the ablation without a personal term."""

    buffers = ()

    def start(self, rng: np.random.Generator) -> Params:
        return {}

    def precompute(self, params: Params, images: Callable[[], Tensor]) -> Params:
        return {}

    def context(self, params: Params) -> Tensor:
        return params["p_G"]


class Full(Nothing):
    """``p_i = p_G + D`` with D (m, d) of full rank."""

    def start(self, rng: np.random.Generator) -> Params:
        return {"D": self._start((self.task.n_ctx, self.task.clip.width), rng)}

    def context(self, params: Params) -> Tensor:
        return params["p_G"] + params["D"]


class LoRAPro(LowRank):
    """``p_i = p_G + U V``, stepping so that p_i moves as nearly along g as its tangent space allows
    (LoRA-Pro, arXiv 2407.18242).

        h_V = (U^T U)^-1 g_V + X V,    h_U = (I - P_U) g_U (V V^T)^-1 - U X
        U^T U X + X V V^T = -(U^T U)^-1 g_V V^T    so that h is as near to (g_U, g_V) as it can be

    Then U h_V + h_U V = P_U g + g P_V - P_U g P_V. Where U^T U is singular (U = 0 at the start) its
    pseudo-inverse is taken; the optimizer's momentum acts on h.
    """

    def change(self, grads: Params, params: Params) -> Params:
        u, v, g_u, g_v = (
            t.cpu().double() for t in (params["U"], params["V"], grads["U"], grads["V"])
        )
        if "columns" in params:
            columns = params["columns"].to(u)
            u, v = u * columns.unsqueeze(-2), v * columns.unsqueeze(-1)
        (values_u, basis_u), (values_v, basis_v) = (
            torch.linalg.eigh(u.mT @ u),
            torch.linalg.eigh(v @ v.mT),
        )
        inverse_u, inverse_v = _inverse(values_u, basis_u), _inverse(values_v, basis_v)
        right = -inverse_u @ g_v @ v.mT
        sums = values_u.clamp(min=0).unsqueeze(-1) + values_v.clamp(min=0).unsqueeze(-2)
        x = basis_u.mT @ right @ basis_v
        x = basis_u @ torch.where(sums > 0, x / sums, 0) @ basis_v.mT
        h_v = inverse_u @ g_v + x @ v
        h_u = (g_u - u @ inverse_u @ (u.mT @ g_u)) @ inverse_v - u @ x
        return {**grads, "U": h_u.to(grads["U"]), "V": h_v.to(grads["V"])}


def _inverse(values: Tensor, basis: Tensor) -> Tensor:
    """Pseudo-inverse of a symmetric matrix from its eigenvalues (..., b) and
    eigenvectors (..., b, b)."""
    small = values <= 1e-10 * values.amax(-1, keepdim=True).clamp(min=1e-30)
    return (basis * torch.where(small, 0, 1 / values).unsqueeze(-2)) @ basis.mT


class LoRASB(LowRank):
    """``p_i = p_G + U R V`` with U and V fixed, b x b numbers trained (LoRA-SB, arXiv 2411.19557).

    Before a client's first step, the full update -lr g of its first batch is cut to rank b by a
    singular value decomposition A S B^T; then U = A, V = B^T and R starts at S.
    """

    buffers = ("U", "V", "fitted")

    def start(self, rng: np.random.Generator) -> Params:
        u, v = self._factors(rng)
        u, v = torch.linalg.qr(normal(tuple(u.shape), rng))[0], torch.linalg.qr(v.mT)[0].mT
        return {
            "U": u,
            "V": v,
            "R": torch.zeros(u.shape[1], u.shape[1]),
            "fitted": torch.zeros(1, 1),
        }

    def precompute(self, params: Params, images: Callable[[], Tensor]) -> Params:
        return {}

    def context(self, params: Params) -> Tensor:
        return params["p_G"] + params["U"] @ params["R"] @ params["V"]

    def fit(self, params: Params, gradient: Callable[[], Tensor], lr: float) -> None:
        if params["fitted"].all():
            return
        left, values, right = torch.linalg.svd(-lr * gradient(), full_matrices=False)
        rank = params["R"].shape[-1]
        found = {
            "U": left[..., :rank],
            "V": right[..., :rank, :],
            "R": torch.diag_embed(values[..., :rank]),
            "fitted": torch.ones_like(params["fitted"]),
        }
        for name, tensor in found.items():
            params[name].copy_(torch.where(params["fitted"] > 0, params[name], tensor))


class Experts(Nothing):
    """``p_i = p_G + sum_e a_e U_e V_e``: E low-rank experts that all clients share, and a personal
    gate a = softmax (after MoLE)."""

    def shared(self, rng: np.random.Generator) -> Params:
        pairs = [self._factors(rng) for _ in range(self.settings.experts)]
        return {
            "experts.U": torch.stack([u for u, _ in pairs]),
            "experts.V": torch.stack([v for _, v in pairs]),
        }

    def start(self, rng: np.random.Generator) -> Params:
        return {"gate": torch.zeros(self.settings.experts)}

    def context(self, params: Params) -> Tensor:
        terms = params["experts.U"] @ params["experts.V"]
        return params["p_G"] + (params["gate"].softmax(-1)[..., None, None] * terms).sum(-3)


class Masked(LowRank):
    """``p_i = p_G + diag(s) U V``, s = sigmoid of a learned number a token: which tokens are
    personal (after TARA)."""

    def start(self, rng: np.random.Generator) -> Params:
        return {**super().start(rng), "s": torch.zeros(self.task.n_ctx, 1)}

    def context(self, params: Params) -> Tensor:
        return super().context({**params, "U": params["s"].sigmoid() * params["U"]})


class RankOne(LowRank):
    """``p_i = p_G + U v^T``, v the leading right singular vector of p_G as received, its largest
    component positive: the client learns m numbers (after Perfusion's key-locking)."""

    buffers = ("v",)

    def start(self, rng: np.random.Generator) -> Params:
        return {"U": self._start((self.task.n_ctx, 1), rng)}

    def precompute(self, params: Params, images: Callable[[], Tensor]) -> Params:
        v = torch.linalg.svd(params["p_G"], full_matrices=False)[2][..., :1, :]
        return {"v": v * v.gather(-1, v.abs().argmax(-1, keepdim=True)).sign()}

    def context(self, params: Params) -> Tensor:
        return personal_context(params["p_G"], params["U"], params["v"])


TERMS: dict[str, type[LowRank]] = {
    "low_rank": LowRank,
    "full": Full,
    "lora_pro": LoRAPro,
    "lora_sb": LoRASB,
    "experts": Experts,
    "masked": Masked,
    "rank_one": RankOne,
    "none": Nothing,
}
"""``method.personal`` -> the term."""
