"""Low-rank adapters whose rank differs from client to client.

All have the shape of the largest rank. What is beyond a client's own rank is zero in A and in B
when a round starts, so that neither has a gradient there and both stay zero. The noise of
``privacy=image`` is taken off there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.arrays import Arrays
from fedpgp.errors import FedPGPError, check_choice, check_number, shown
from fedpgp.methods.base import Batch, LoadClientBatch, Params, StepContext
from fedpgp.methods.lora import LoRA, LoRASettings
from fedpgp.task import ClassSet

KEPT = "kept"
"""A client's rank, by what the server tells it and by its images: (b,), ones and then zeros."""


@dataclass(frozen=True)
class RankedLoRASettings(LoRASettings):
    """Settings of adapters whose rank differs.

    Attributes:
        ranks: of clients 0, 1, … in turn, at most ``rank``; empty: all have ``rank``.
        rank_by: ``client``: as ``ranks`` says; ``images``: by the number of a client's images.
        images_a_rank: with ``images``, a client has one rank for so many images, at most ``rank``.
    """

    ranks: Sequence[int] = ()
    rank_by: str = "client"
    images_a_rank: int = 8

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.ranks, str) or not isinstance(self.ranks, Sequence):
            given = None
        else:
            given = tuple(self.ranks)
        if given is None or len(given) == 1:
            raise FedPGPError(
                f"method.ranks={shown(self.ranks)} cannot work; it is a list of two ranks or more "
                "such as [8,4,2], or [] for method.rank on all clients"
            )
        for rank in given:
            check_number("method.ranks", rank, least=1, most=self.rank, whole=True)
        object.__setattr__(self, "ranks", given)
        check_choice("method.rank_by", self.rank_by, ("client", "images"))
        check_number("method.images_a_rank", self.images_a_rank, least=1, whole=True)
        if given and self.rank_by == "images":
            raise FedPGPError(
                "method.ranks and method.rank_by=images both say which rank a client has: leave "
                "one of them out"
            )


class RankedLoRA(LoRA):
    """Shared: A (L, b, in) and B (L, out, b) of each layer, b the largest rank."""

    Settings = RankedLoRASettings
    settings: RankedLoRASettings
    buffers = (KEPT,)

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {**self.start_A(rng), **self.start_B()}

    def rank_of(self, client: int) -> int:
        """Return a client's rank."""
        ranks = self.settings.ranks
        return ranks[client % len(ranks)] if ranks else self.settings.rank

    def init_server_state(self, clients: int) -> Params:
        if not self.settings.ranks:
            return {}
        return {"ranks": torch.tensor([float(self.rank_of(client)) for client in range(clients)])}

    def download_for(self, client: int, server_state: Params) -> Params:
        if not self.settings.ranks:
            return {}
        return {KEPT: (torch.arange(self.settings.rank) < self.rank_of(client)).double()}

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        kept = params.get(KEPT)
        if self.settings.rank_by == "images":
            images = (load_batch(images=False).weights > 0).sum(1, keepdim=True)
            most = (images / self.settings.images_a_rank).ceil().clamp(min=1)
            by_images = self.first(most).to(next(iter(params.values())))
            kept = by_images if kept is None else kept * by_images
        return {} if kept is None else {KEPT: kept, **self.of_rank(params, kept)}

    def first(self, ranks: Tensor) -> Tensor:
        """Return ones for so many ranks, then zeros: (K, 1) -> (K, b)."""
        return torch.arange(self.settings.rank, device=ranks.device) < ranks

    def why_not_per_image(self) -> str | None:
        if self.settings.rank_by == "images":
            return "method.rank_by=images: the rank of what a client sends tells how many it has"
        return None

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        loss, grads = super().gradients(params, batch, classes, step)
        if KEPT in params:
            grads = grads | self.of_rank(grads, params[KEPT])
        return loss, grads

    def begun_with(self, shared: Arrays, update: Arrays) -> Arrays:
        """Return A and B without the ranks of a layer of which a client sends nothing."""
        begun = dict(shared)
        for place in self.places:
            A, B = f"{place}.A", f"{place}.B"
            has = update[A].any(-1) | update[B].any(-2)
            begun[A] = shared[A] * has[..., None]
            begun[B] = shared[B] * has[..., None, :]
        return begun

    def of_rank(self, tensors: Params, kept: Tensor) -> Params:
        """Return every A and B, zero beyond each client's rank."""
        rows = kept.unsqueeze(1)
        own: Params = {}
        for place in self.places:
            own[f"{place}.A"] = tensors[f"{place}.A"] * rows.unsqueeze(-1)
            own[f"{place}.B"] = tensors[f"{place}.B"] * rows.unsqueeze(-2)
        return own
