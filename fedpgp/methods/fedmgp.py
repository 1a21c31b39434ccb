"""FedMGP: several pairs of a text and an image prompt on each client, some of which are sent each
round (Bo et al., NeurIPS 2025, arXiv 2511.00480).

    y_g = s cos(f(patches, v_g), g(t_g))        group g of G; in prediction the mean over groups
    L   = mean_g CE(y_g) + lambda * (text + image)/2
          text, image: mean cosine of two groups' features, over pairs of groups and classes or
                       images; penalty=l1: their mean absolute difference

After training a client draws s groups without replacement, p = softmax(sim / tau), sim_j the
largest cosine of group j with a global prompt (uniform in round 1), text and image prompts each by
themselves but with the same random numbers, and sends them in the order drawn. The server averages
them rank by rank; the client puts the i-th average in the place of the i-th it sent. The other
groups stay with it, and all of them in rounds without it: the server keeps for each client the
averages of its last round. (Public code takes another penalty, with the wrong sign, draws groups
and text prompts from fixed seeds, and the image prompts' start from the clock.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.errors import FedPGPError, check_choice, check_number
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    Batch,
    Images,
    LoadClientBatch,
    Method,
    Params,
    RoundContext,
    StepContext,
    register,
)
from fedpgp.prompts import normal, starting_context
from fedpgp.seeding import generator
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet
from fedpgp.towers.image import ImageTower

SPREAD = 0.01
"""Standard deviation of the groups' text prompts around the starting phrase."""


@dataclass(frozen=True)
class FedMGPSettings:
    """Settings of FedMGP.

    Attributes:
        groups: G.
        sent: s, groups a client sends each round.
        tokens: image prompts of a group.
        weight: lambda, of the similarity between groups.
        tau: temperature of the draw.
        penalty: ``cosine`` as in the paper, or ``l1`` as in the public code, which
            draws the groups together.
    """

    groups: int = 5
    sent: int = 2
    tokens: int = 2
    weight: float = 1.0
    tau: float = 1.0
    penalty: str = "cosine"

    def __post_init__(self):
        for name in ("groups", "sent", "tokens"):
            check_number(f"method.{name}", getattr(self, name), least=1, whole=True)
        check_number("method.weight", self.weight, least=0)
        check_number("method.tau", self.tau, above=0)
        check_choice("method.penalty", self.penalty, ("cosine", "l1"))
        if self.sent > self.groups:
            raise FedPGPError(
                f"method.sent={self.sent}: there are only method.groups={self.groups}"
            )


@register("fedmgp")
class FedMGP(Method):
    """Shared: t (s, m, d), v (s, n_v, W), rank by rank. Personal: T (G, m, d), V (G, n_v,
    W), and which were sent."""

    about = About(
        title="FedMGP",
        paper="Bo et al., NeurIPS 2025",
        family="federated_prompts",
        learns=("text prompts", "image prompts"),
        shared="some groups of text and image prompts",
        personal="the other groups",
        sent="sent*(m*d + tokens*W)",
        passes="`groups`",
        official=(
            "exact (run) with `method.penalty=l1` `method.weighting=equal`: weihao-bo/FedMGP at "
            "3a02697"
        ),
        model="tiny_vit",
        order=19,
    )
    per_image = "copies"
    Settings = FedMGPSettings
    inputs = ("pixels",)
    buffers = ("t", "v", "last_t", "last_v", "sent_T", "sent_V")

    @cached_property
    def tower(self) -> ImageTower:
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    def init_shared(self, rng: np.random.Generator) -> Params:
        t, v = self._groups(self.settings.sent, rng)
        return {"t": t, "v": v}

    def init_personal(self, rng: np.random.Generator) -> Params:
        t, v = self._groups(self.settings.groups, rng)
        never = torch.full((self.settings.sent,), -1.0)
        return {"T": t, "V": v, "sent_T": never, "sent_V": never.clone()}

    def _groups(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        task = self.task
        start = starting_context(task.clip, task.n_ctx, task.context_init, rng)
        t = start + normal((count, *start.shape), rng, SPREAD)
        if task.context_init == "normal":
            t = normal((count, *start.shape), rng)
        return t, normal((count, self.settings.tokens, self.tower.width), rng)

    def contexts(self, training: bool) -> int:
        return self.settings.groups

    def image_values(self, images: int) -> int:
        return self.tower.values(self.settings.groups * images)

    # Which groups travel. -------------------------------------------------------------------------

    def init_server_state(self, clients: int) -> Params:
        s, task = self.settings, self.task
        return {
            "t": torch.zeros(clients, s.sent, task.n_ctx, task.clip.width),
            "v": torch.zeros(clients, s.sent, s.tokens, self.tower.width),
        }

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        server_state = {name: tensor.clone() for name, tensor in context.server_state.items()}
        for name, tensor in server_state.items():
            tensor[context.clients] = averaged[name]
        return averaged, server_state

    def download_for(self, client: int, server_state: Params) -> Params:
        """The averages of the last round that the client took part in."""
        return {f"last_{name}": tensor[client] for name, tensor in server_state.items()}

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        """The averages in the place of the groups that were sent for them."""
        merged = {}
        for groups, averages in (("T", "t"), ("V", "v")):
            merged[groups] = params[groups].clone()
            for k, places in enumerate(params[f"sent_{groups}"].long()):
                if (places >= 0).all():
                    merged[groups][k, places] = params[f"last_{averages}"][k]
        return merged

    def finish_client(self, params: Params, step: StepContext) -> Params:
        result = dict(params)
        for groups, averages in (("T", "t"), ("V", "v")):
            drawn = torch.stack(
                [
                    self.draw(params[groups][k], step.global_params[averages][k], step, client)
                    for k, client in enumerate(step.clients)
                ]
            )
            result[f"sent_{groups}"] = drawn.to(params[groups])
            result[averages] = torch.stack(
                [
                    client_groups[places]
                    for client_groups, places in zip(params[groups], drawn, strict=True)
                ]
            )
        return result

    def draw(self, groups: Tensor, averages: Tensor, step: StepContext, client: int) -> Tensor:
        """Positions (s,) of the groups that a client sends, in the order drawn. Text and image
        prompts get the same random numbers, so in round 1 they come in pairs."""
        noise = generator(step.seed, "fedmgp", client, step.server_round).gumbel(size=len(groups))
        similarity = F.cosine_similarity(
            groups.flatten(1).unsqueeze(1), averages.flatten(1), dim=-1
        ).amax(1)
        if step.server_round == 1:
            similarity = torch.zeros_like(similarity)
        # The s largest of logits plus Gumbel noise are a draw without replacement, in order.
        keys = similarity.cpu().double() / self.settings.tau + torch.from_numpy(noise)
        return keys.argsort(descending=True)[: self.settings.sent].to(groups.device)

    # Training and answers. ------------------------------------------------------------------------

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        z, x = self.texts(params["T"], classes), self.prompted_images(params["V"], batch.images)
        loss = self._cross_entropy(z, x, batch)
        if z.shape[1] == 1:
            return loss
        return loss + self.settings.weight * (self._alike(z) + self._images_alike(x, batch)) / 2

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        z, x = self.texts(params["T"], classes), self.prompted_images(params["V"], batch.images)
        loss = self._cross_entropy(z, x, batch)
        if z.shape[1] == 1:
            return loss
        return loss + self.settings.weight * self._images_alike(x, batch) / 2

    def free_term(self, params: Params, classes: ClassSet, step: StepContext) -> Tensor | None:
        z = self.texts(params["T"], classes)
        return None if z.shape[1] == 1 else self.settings.weight * self._alike(z) / 2

    def _cross_entropy(self, z: Tensor, x: Tensor, batch: Batch) -> Tensor:
        """Mean over groups, (K,)."""
        logits = self.task.logit_scale * x @ z.mT  # (K, G, B, C)
        labels, weights = (
            t.unsqueeze(1).expand(-1, z.shape[1], -1) for t in (batch.labels, batch.weights)
        )
        return cross_entropy(logits, labels, weights).mean(1)

    def _alike(self, z: Tensor) -> Tensor:
        """How alike two groups' class features are, (K,)."""
        if self.settings.penalty == "l1":
            return self._apart(z).mean(-1)
        groups = z.shape[1]
        similar = torch.einsum("kgce,khce->k", z, z) / z.shape[2] - groups
        return similar / (groups * (groups - 1))

    def _images_alike(self, x: Tensor, batch: Batch) -> Tensor:
        """How alike two groups' image features are, (K,)."""
        if self.settings.penalty == "l1":
            return (self._apart(x) * batch.weights).sum(-1)
        groups = x.shape[1]
        similar = torch.einsum("kgbe,khbe,kb->k", x, x, batch.weights) - groups
        return similar / (groups * (groups - 1))

    def _apart(self, features: Tensor) -> Tensor:
        """Mean absolute difference of two groups' features, (K, G, n, e) -> (K, n)."""
        g, h = torch.triu_indices(features.shape[1], features.shape[1], 1)
        return (features[:, g] - features[:, h]).abs().mean((1, 3))

    def texts(self, t: Tensor, classes: ClassSet) -> Tensor:
        """(K, G, m, d) -> (K, G, C, e)."""
        return classes.encoder(self.task.n_ctx)(t)

    def prompted_images(self, v: Tensor, images: Images) -> Tensor:
        """(K, G, n_v, W) -> (K, G, B, e)."""
        embedded = self.tower.embed(images.pixels)
        return torch.stack(
            [self.tower.encode(embedded, v[:, g].unsqueeze(1)) for g in range(v.shape[1])], dim=1
        )

    def global_classifier(self, shared: Params, classes: ClassSet) -> Params:
        return {"texts": self.texts(shared["t"], classes), "v": shared["v"]}

    def personal_classifier(self, params: Params, classes: ClassSet) -> Params:
        return {"texts": self.texts(params["T"], classes), "v": params["V"]}

    def logits(self, classifier: Params, images: Images, classes: ClassSet) -> Tensor:
        return self.task.logit_scale * (
            self.prompted_images(classifier["v"], images) @ classifier["texts"].mT
        ).mean(1)

    def step_work(self, size: StepSize) -> Work:
        groups = self.settings.groups
        return size.texts(groups) + size.through_image_tower(self.settings.tokens, groups=groups)
