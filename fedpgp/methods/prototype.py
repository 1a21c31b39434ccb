"""Prototype head: every class is the mean feature of its images, and nothing is trained (FedNCM:
Legate et al., NeurIPS 2023, arXiv 2302.03519).

    client:  s_c = sum of the features of its images of class c, n_c = how many; it sends both,
             of the images that it has not sent yet
    server:  S_c <- S_c + sum over clients of s_c,   N_c <- N_c + sum over clients of n_c
    answer:  the class whose S_c / |S_c| has the largest cosine with the image's feature; a class
             that nobody had images of stands there with its text, as zero-shot CLIP has it

The sums are those of all images together, however these are split over clients, rounds and tasks:
the head forgets nothing. Where other images take the place of a client's own
(``ClientSplit.phases``), both count, an image of both phases twice; where images are added to those
it has (a folder that grows), each counts once.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.losses import cross_entropy
from fedpgp.methods.about import About
from fedpgp.methods.base import (
    PHASE,
    Batch,
    LoadClientBatch,
    Method,
    Params,
    RoundContext,
    StepContext,
    register,
)
from fedpgp.methods.class_sums import class_sums
from fedpgp.step_work import StepSize, Work
from fedpgp.task import ClassSet


@register("prototype")
class Prototype(Method):
    """Shared: sums (classes, e) and counts (classes, 1) over all clients. Personal: the client's
    own, of the images it has now."""

    about = About(
        title="Prototype head",
        paper="FedNCM, Legate et al., NeurIPS 2023",
        family="lifelong",
        learns=("heads",),
        shared="sums and counts of features, by class",
        personal="nothing private",
        sent="C*(e + 1)",
        passes="none",
        official=(
            "declared difference: GwenLegate/GuidingLastLayerFLPretrain at 54b5d1e averages "
            "features that are not of unit norm, and adds a random bias"
        ),
        order=29,
    )
    statistics = ("sums", "counts")
    """What is summed over images."""
    buffers = (*statistics, "sent.sums", "sent.counts", "own.sums", "own.counts")
    buffers += ("sent.phase", PHASE, "head")
    delta_params = statistics
    sent_copies = ("sent.sums", "sent.counts")
    equal_weights = True
    precomputes_for_evaluation = False
    no_class_embeddings = "its clients send sums of image features, no prompt"

    def why_not_per_image(self) -> str:
        return (
            f"method={self.name}: a client sends sums of its image features; no gradient is "
            "clipped. Take privacy=client"
        )

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape of each of :attr:`statistics`."""
        classes, embed = len(self.task.class_names), self.task.clip.embed
        return {"sums": (classes, embed), "counts": (classes, 1)}

    def init_shared(self, rng: np.random.Generator) -> Params:
        return {name: torch.zeros(shape) for name, shape in self.shapes().items()}

    def init_personal(self, rng: np.random.Generator) -> Params:
        sent = {f"sent.{name}": torch.zeros(shape) for name, shape in self.shapes().items()}
        return {**sent, "sent.phase": torch.zeros(1)}

    # Counting. ------------------------------------------------------------------------------------

    def precompute(self, params: Params, load_batch: LoadClientBatch, classes: ClassSet) -> Params:
        own = self.count(load_batch(), classes)
        head = self.global_classifier(params, classes)
        return {"head": head, **{f"own.{name}": tensor for name, tensor in own.items()}}

    def count(self, batch: Batch, classes: ClassSet) -> Params:
        """Return the :attr:`statistics` of each client's images, (K, ...)."""
        sums, counts = class_sums(batch, classes.ids, len(self.task.class_names))
        return {"sums": sums, "counts": counts}

    def loss(self, params: Params, batch: Batch, classes: ClassSet, step: StepContext) -> Tensor:
        """The cross-entropy of the head as the server sent it, which no step changes."""
        logits = self.logits(params["head"], batch.images, classes)
        return cross_entropy(logits, batch.labels, batch.weights)

    def gradients(
        self, params: Params, batch: Batch, classes: ClassSet, step: StepContext
    ) -> tuple[Tensor, Params]:
        return self.loss(params, batch, classes, step), {}

    def finish_client(self, params: Params, step: StepContext) -> Params:
        phase = params[PHASE].unsqueeze(-1).to(params["sent.phase"])
        same = (params["sent.phase"] == phase).unsqueeze(-1)  # (K, 1, 1)
        finished = {**params, "sent.phase": phase}
        for name in self.statistics:
            own = params[f"own.{name}"]
            finished[name] = own - torch.where(same, params[f"sent.{name}"], 0)
            finished[f"sent.{name}"] = own
        return finished

    def update_server(self, averaged: Params, context: RoundContext) -> tuple[Params, Params]:
        clients = len(context.clients)  # the strategy's mean is over these
        return {
            name: context.global_params[name] + clients * tensor
            for name, tensor in averaged.items()
        }, {}

    # Answers. -------------------------------------------------------------------------------------

    def global_classifier(self, shared: Params, classes: ClassSet) -> Tensor:
        columns = list(classes.ids)
        seen = shared["counts"][:, columns] >= 0.5  # noise may have been added
        return torch.where(seen, self.head(shared)[:, columns], classes.zero_shot)

    def head(self, shared: Params) -> Tensor:
        """Return a row for each class of the data set, (K, classes, e)."""
        return F.normalize(shared["sums"], dim=-1)

    def step_work(self, size: StepSize) -> Work:
        return size.layer(size.images, self.task.clip.embed, len(size.classes.names), times=1)
