"""FedPGP with one low-rank term a task, for clients whose images are replaced by others.

    P   = sum_{s<t} U_s V_s                    long-term: the terms of finished tasks, which stay
    p_t = p_G + P + U_t V_t                    recent: the term of task t is trained, with p_G
    z_G = g(p_G),  z_L = g(p_G + P),  z_t = g(p_t)
    L   = CE(z_t) + mu * L_con(z_G, z_C, z_t) + lambda * sum_{s<t} |V_s V_t^T|_1
    y   = (1 - a(x)) s x.z_L + a(x) s x.z_t    the answer, mixed for each image x
    a   = softmax over (long-term, recent) of max_c cos(x, mean_c) / tau_a

mean_c is the mean feature of the client's own images of class c, of finished tasks or of the
recent one. A task begins when other images take the place of the client's own
(``ClientSplit.phases``); nobody says which task an image is of. With one task it is FedPGP
(``method.personal_init=zero``).

No paper has the whole. Its parts: L_con is FedPGP's (Cui et al., ICML 2024). Summed terms, of which
only the newest learns, and lambda * sum |A_s A_t^T|_1 with LoRA's A as V here: O-LoRA (Wang et al.,
Findings of EMNLP 2023, arXiv 2310.14152). A soft mixture of low-rank terms for each user and input,
sum_k alpha_k A_k B_k, and a long history beside a short one: RecLoRA (Zhu et al., 2024, arXiv
2408.03533: "Lifelong Personalized Low-Rank Adaptation"), whose gate reads a recommender; here it
reads class means. The means, P, U and V stay with the client.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.errors import check_number
from fedpgp.losses import cross_entropy, prompt_contrastive_loss
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    PHASE,
    Batch,
    Classifier,
    Images,
    LoadClientBatch,
    Method,
    Params,
    StepContext,
    cosine_logits,
    register,
)
from fedpgp.methods.class_sums import class_sums
from fedpgp.prompts import low_rank_term, normal, personal_context, starting_context
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


@dataclass(frozen=True)
class LifelongFedPGPSettings:
    """Settings of lifelong FedPGP.

    Attributes:
        rank: b, of a task's term.
        mu: weight of the contrastive loss.
        tau: its temperature.
        orthogonal: lambda, weight of the penalty that keeps terms orthogonal.
        gate_tau: tau_a, temperature of the mixture.
    """

    rank: int = 2
    mu: float = 0.5
    tau: float = 0.5
    orthogonal: float = 0.5
    gate_tau: float = 0.05

    def __post_init__(self):
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.mu", self.mu, least=0)
        check_number("method.tau", self.tau, above=0)
        check_number("method.orthogonal", self.orthogonal, least=0)
        check_number("method.gate_tau", self.gate_tau, above=0)


@register("fedpgp_lifelong")
class LifelongFedPGP(Method):
    """Shared: p_G (m, d). Personal: U (m, b) and V (b, d) of the recent task, P (m, d), ``terms``:
    each task's V (tasks, b, d), where ``done`` is 1; sums and counts of features by class."""

    about = About(
        title="FedPGP, a term a task",
        paper="this project, after FedPGP, O-LoRA and RecLoRA",
        family="lifelong",
        shared="context",
        personal="a low-rank term for each task, class means",
        sent="m*d",
        passes="2; 1 with `method.mu=0`",
        order=31,
    )
    Settings = LifelongFedPGPSettings
    settings: LifelongFedPGPSettings
    buffers = ("P", "terms", "done", "task", PHASE, "past.sums", "past.counts", "sums", "counts")
    precomputes_for_evaluation = False

    def why_not_per_image(self) -> str:
        return (
            "method=fedpgp_lifelong: its personal model keeps means of the client's image "
            "features, without noise"
        )

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {
            "p_G": starting_context(self.task.clip, self.task.n_ctx, self.task.context_init, rng)
        }

    def init_personal(self, rng: np.random.Generator) -> Params:
        m, d, rank = self.task.n_ctx, self.task.clip.width, self.settings.rank
        classes, embed = len(self.task.class_names), self.task.clip.embed
        u, v = low_rank_term(m, d, rank, "zero", rng)
        later = normal((self.task.phases - 1, rank, d), rng)
        means = {"sums": torch.zeros(classes, embed), "counts": torch.zeros(classes, 1)}
        return {
            "U": u,
            "V": v,
            "P": torch.zeros(m, d),
            "terms": torch.cat([v.unsqueeze(0), later]),  # where V of later tasks start
            "done": torch.zeros(self.task.phases),
            "task": torch.full((1,), -1.0),  # the phase of the recent one; none yet
            **means,
            **{f"past.{name}": tensor.clone() for name, tensor in means.items()},
        }

    # A new task. ----------------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        sums, counts = class_sums(load_batch(), classes.ids, len(self.task.class_names))
        task, phase = params["task"], params[PHASE].unsqueeze(-1)  # (K, 1)
        begins = ((task >= 0) & (task != phase)).unsqueeze(-1)
        slots = torch.arange(self.task.phases, device=phase.device)
        ends = begins.squeeze(-1) & (slots == task)  # (K, phases)
        terms = torch.where(ends[..., None, None], params["V"].unsqueeze(1), params["terms"])
        next_v = terms[torch.arange(len(phase), device=phase.device), phase.squeeze(-1)]
        return {
            "task": phase.to(task),
            "sums": sums,
            "counts": counts,
            "terms": terms,
            "done": params["done"] + ends.to(task),
            "P": params["P"] + torch.where(begins, params["U"] @ params["V"], 0),
            "U": torch.where(begins, 0, params["U"]),
            "V": torch.where(begins, next_v, params["V"]),
            "past.sums": params["past.sums"] + torch.where(begins, params["sums"], 0),
            "past.counts": params["past.counts"] + torch.where(begins, params["counts"], 0),
        }

    # Training. ------------------------------------------------------------------------------------

    def image_term(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> Tensor:
        z = self._encode(self._recent(params), classes)
        return cross_entropy(
            cosine_logits(z, batch.images.features, self.task.logit_scale),
            batch.labels,
            batch.weights,
        )

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        s, penalty = self.settings, self._penalty(params)
        if s.mu == 0:
            return self.image_term(params, batch, classes, step) + penalty
        z_G, z = self._encode(torch.stack([params["p_G"], self._recent(params)]), classes)
        logits = cosine_logits(z, batch.images.features, self.task.logit_scale)
        contrast = prompt_contrastive_loss(z_G, classes.template_features, z, s.tau)
        return cross_entropy(logits, batch.labels, batch.weights) + s.mu * contrast + penalty

    def _penalty(self, params: Params) -> Tensor:
        """lambda * sum_{s<t} |V_s V_t^T|_1 over finished tasks, (K,)."""
        overlaps = params["terms"] @ params["V"].mT.unsqueeze(1)  # (K, phases, b, b)
        sums = (overlaps.abs().sum((-2, -1)) * params["done"]).sum(-1)
        return self.settings.orthogonal * sums

    def step_work(self, size: StepSize) -> Work:
        return size.texts(1 if self.settings.mu == 0 else 2)

    # Answers. -------------------------------------------------------------------------------------

    def _recent(self, params: Params) -> Tensor:
        return personal_context(params["p_G"] + params["P"], params["U"], params["V"])

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        return self._encode(shared["p_G"], classes)

    def personal_classifier(self, params: Params, classes: ClassSet) -> Params:
        contexts = torch.stack([params["p_G"] + params["P"], self._recent(params)])
        long, recent = self._encode(contexts, classes)
        names = ("sums", "counts", "past.sums", "past.counts")
        return {"long": long, "recent": recent, **{name: params[name] for name in names}}

    def logits(self, classifier: Classifier, images: Images, classes: ClassSet) -> Tensor:
        x, scale = images.features, self.task.logit_scale
        if isinstance(classifier, Tensor):
            return cosine_logits(classifier, x, scale)
        share = self._share(classifier, x).unsqueeze(-1)
        long, recent = (cosine_logits(classifier[name], x, scale) for name in ("long", "recent"))
        return long + share * (recent - long)

    def _share(self, classifier: Params, x: Tensor) -> Tensor:
        """Return a(x), the recent classifier's share in each image's answer, (K, B); 0 where the
        client has had no images yet."""
        nearest = []
        for prefix in ("past.", ""):
            means = F.normalize(classifier[f"{prefix}sums"], dim=-1)
            absent = classifier[f"{prefix}counts"].mT == 0
            nearest.append((x @ means.mT).masked_fill(absent, float("-inf")).amax(-1))
        past, recent = nearest
        return ((recent - past) / self.settings.gate_tau).sigmoid().nan_to_num(0)

    def _encode(self, context: Tensor, classes: ClassSet) -> Tensor:
        return classes.encoder(self.task.n_ctx)(context)
