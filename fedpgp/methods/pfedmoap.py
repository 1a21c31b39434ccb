"""pFedMoAP: a mixture of other clients' prompts, gated for each image (Luo et al., ICLR
2025, arXiv 2410.10114).

    T_0        = g(p_i);    T_1..T_E: class features of the E prompts nearest to p_i in the server's
                            pool, frozen
    pool(x)    = every (e/128)-th coordinate of x
    T_moe,c    = Wo concat_h softmax(10 q_h k_h^T) v_h
                            q = Wq pool(x), k = Wk pool(T), v = Wv pool(T), h of 8
    y_c        = lambda s x.T_0,c + s pool(x).T_moe,c
    L          = CE(y), which trains p_i and the gate; y = s x.T_0 as long as the client is not in
                 the pool

A round starts from the average of the prompts; the client sends its own, keeps it for prediction,
and keeps its gate to itself. The server's pool holds every client's last prompt. A client answers
through its gate once the gate was trained, so from its second round on. (Public code always takes
the same "random" experts, and hands one client's gate to the next.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_number
from fedpgp.layers import linear, linear_start
from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    Batch,
    Classifier,
    Images,
    LoadClientBatch,
    Params,
    RoundContext,
    StepContext,
    cosine_logits,
    register,
)
from fedpgp.methods.promptfl import PromptFL
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet

SHARPNESS = 10.0
"""Factor on the attention's products, in the place of 1/sqrt(size)."""


@dataclass(frozen=True)
class PFedMoAPSettings:
    """Settings of pFedMoAP.

    Attributes:
        experts: prompts in the mixture, the client's own included.
        text: lambda, weight of the client's own prompt beside the mixture.
        width: of the pooled features; it divides the embedding.
        heads: of the gate.
        gate_rate: learning rate of the gate relative to the prompt's.
        gate_lr: its own learning rate in every round, whatever the schedule, in the place of
            ``gate_rate``.
    """

    experts: int = 10
    text: float = 0.5
    width: int = 128
    heads: int = 8
    gate_rate: float = 5.0
    gate_lr: float | None = 0.01

    def __post_init__(self):
        check_number("method.experts", self.experts, least=2, whole=True)
        check_number("method.text", self.text, least=0)
        check_number("method.width", self.width, least=1, whole=True)
        check_number("method.heads", self.heads, least=1, whole=True)
        check_number("method.gate_rate", self.gate_rate, above=0)
        if self.gate_lr is not None:
            check_number("method.gate_lr", self.gate_lr, above=0)
        if self.width % self.heads:
            raise FedPGPError(
                f"method.heads={self.heads} does not divide method.width={self.width}"
            )


@register("pfedmoap")
class PFedMoAP(PromptFL):
    """Shared: p_G (m, d). Personal: the gate (4 x 128 x 128 and biases), and the prompt p
    (m, d) as it was sent."""

    about = About(
        title="pFedMoAP",
        paper="Luo et al., ICLR 2025",
        family="federated_prompts",
        shared="context, a pool of all",
        personal="gate",
        sent="m*d",
        passes="1, and `experts - 1` once a round without gradients",
        official=(
            "declared difference: ljaiverson/pFedMoAP at a481de3 takes the same experts in every "
            "round; loss and gradients are exact (run)"
        ),
        order=15,
    )
    per_image = "shared"
    small = {"width": 16}
    sent_copies = ("p",)
    needs_each_update = True
    Settings = PFedMoAPSettings
    buffers = ("p", "tuned", "gated", "experts", "real", "known", "pooled")
    precomputes_for_evaluation = False

    def init_personal(self, rng: np.random.Generator) -> Params:
        width, embed = self.settings.width, self.task.clip.embed
        if embed % width:
            raise FedPGPError(
                f"method.width={width} does not divide the model's embedding of {embed}"
            )
        context = torch.zeros(self.task.n_ctx, self.task.clip.width)
        state = {"p": context, "tuned": torch.zeros(1, 1), "gated": torch.zeros(1, 1)}
        for part in ("q", "k", "v", "o"):
            state |= linear_start(f"gate.{part}", width, width, rng)
        return state

    def contexts(self, training: bool) -> int:
        return 2 if training else self.settings.experts

    # The server's pool. ---------------------------------------------------------------------------

    def init_server_state(self, clients: int) -> Params:
        return {
            "pool": torch.zeros(clients, self.task.n_ctx, self.task.clip.width),
            "known": torch.zeros(clients),
        }

    def download_for(self, client: int, server_state: Params) -> Params:
        pool, known = server_state["pool"], server_state["known"]
        distance = (
            (pool - pool[client]).flatten(1).norm(dim=1).masked_fill(known == 0, float("inf"))
        )
        distance[client] = float("inf")
        count = min(self.settings.experts, len(pool)) - 1
        nearest = distance.sort(stable=True).indices[:count]
        real = distance[nearest].isfinite().to(pool.dtype)
        return {"experts": pool[nearest], "real": real, "known": known[client].view(1, 1)}

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        pool, known = context.server_state["pool"].clone(), context.server_state["known"].clone()
        pool[context.clients], known[context.clients] = context.updates["p_G"], 1
        return averaged, {"pool": pool, "known": known}

    # Training. ------------------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        return {"pooled": self.pooled_experts(params, classes)}

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        texts = self.global_classifier(params, classes)
        classifier = self.mixture(params, texts, params["pooled"], params["known"])
        return cross_entropy(
            self.logits(classifier, batch.images, classes), batch.labels, batch.weights
        )

    def rates(self, params: Params, step: StepContext) -> Params:
        """The gate has a rate of its own, and stays as it is as long as the client is not in the
        pool."""
        rates, s = {}, self.settings
        rate = s.gate_rate if s.gate_lr is None else s.gate_lr / step.lr
        for name in self.trainable(params):
            if name.startswith("gate."):
                trains = (
                    (params["known"] > 0).to(params[name]).view(-1, *[1] * (params[name].dim() - 1))
                )
                rates[name] = rate * trains
        return rates

    def finish_client(self, params: Params, step: StepContext) -> Params:
        gated = torch.maximum(params["gated"], params["known"])
        return {
            **params,
            "p": params["p_G"],
            "tuned": torch.ones_like(params["tuned"]),
            "gated": gated,
        }

    # Answers. -------------------------------------------------------------------------------------

    def personal_classifier(self, params: Params, classes: ClassSet) -> Params:
        context = torch.where(params["tuned"] > 0, params["p"], params["p_G"])
        texts = self.global_classifier({"p_G": context}, classes)
        return self.mixture(params, texts, self.pooled_experts(params, classes), params["gated"])

    def mixture(self, params: Params, texts: Tensor, experts: Tensor, gated: Tensor) -> Params:
        """Return the mixture's classifier: the client's own class features, the pooled experts',
        the gate, and whether (K, 1, 1) the gate counts."""
        gate = {name: tensor for name, tensor in params.items() if name.startswith("gate.")}
        return {"texts": texts, "experts": experts, "real": params["real"], "gated": gated, **gate}

    def pooled_experts(self, params: Params, classes: ClassSet) -> Tensor:
        """(K, E, C, 128). Each prompt goes through the text tower once, however many clients have
        it."""
        contexts, place = params["experts"].flatten(0, 1).unique(dim=0, return_inverse=True)
        texts = self.pool(classes.encoder(self.task.n_ctx)(contexts))
        return texts[place.view(params["experts"].shape[:2])]

    def pool(self, features: Tensor) -> Tensor:
        return features[..., :: features.shape[-1] // self.settings.width]

    def logits(self, classifier: Classifier, images: Images, classes: ClassSet) -> Tensor:
        x, scale = images.features, self.task.logit_scale
        if isinstance(classifier, Tensor):
            return cosine_logits(classifier, x, scale)
        texts, query = classifier["texts"], self.pool(x)
        tokens = torch.cat(
            [self.pool(texts).unsqueeze(1), classifier["experts"]], dim=1
        )  # (K, 1 + E, C, 128)
        real = torch.cat([torch.ones_like(classifier["gated"][:, 0]), classifier["real"]], dim=1)
        q = linear(classifier, "gate.q", query).unflatten(-1, (self.settings.heads, -1))
        k, v = (
            linear(classifier, f"gate.{part}", tokens).unflatten(-1, (self.settings.heads, -1))
            for part in ("k", "v")
        )
        scores = SHARPNESS * torch.einsum("kbhd,kechd->kbche", q, k)
        probs = scores.masked_fill(real[:, None, None, None] == 0, float("-inf")).softmax(-1)
        # pool(x).(Wo mix + b) = (Wo^T pool(x)).mix + pool(x).b: no mixture of its own
        # for each image and class.
        turned = (query @ classifier["gate.o.weight"]).unflatten(-1, (self.settings.heads, -1))
        mixed = (probs * torch.einsum("kbhd,kechd->kbche", turned, v)).sum((-2, -1))
        mixed = mixed + query @ classifier["gate.o.bias"].unsqueeze(-1)
        text = cosine_logits(texts, x, scale)
        return torch.where(classifier["gated"] > 0, self.settings.text * text + scale * mixed, text)

    def step_work(self, size: StepSize) -> Work:
        settings, pairs = self.settings, size.images * len(size.classes.names)
        width, experts = settings.width, settings.experts
        tokens = size.layer(experts * len(size.classes.names), width, 2 * width)
        gate = size.layer(size.images, width, 2 * width) + size.layer(pairs, width, 2 * experts)
        return size.texts() + tokens + gate
