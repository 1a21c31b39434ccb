"""PromptFL and FedPGP as a textbook writes them: a torch module, full token sequences, autograd.
What both other simulators train."""

from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.bench.peers.problem import ClientData, Problem
from experiments.bench.textbook import encode_text, placeholder_texts
from fedpgp.clip import load_clip
from fedpgp.losses import prompt_contrastive_loss


class PromptLearner(nn.Module):
    """The prompt of PromptFL (``p_G``) or FedPGP (``p_G``, ``U``, ``V``) as parameters.

    The frozen text tower is no submodule: what is sent and saved are the prompts alone.

    Args:
        problem: what is trained.

    Attributes:
        losses: of the steps since it was emptied.
    """

    def __init__(self, problem: Problem):
        super().__init__()
        self.settings = problem.settings
        for name, tensor in (problem.shared | problem.personal).items():
            self.register_parameter(name, nn.Parameter(tensor.clone()))
        clip = load_clip(self.settings.model, self.settings.pretrained, "cpu")
        self._encode = partial(encode_text, clip.text_model)
        self._tokenize, self._scale = clip.tokenizer, clip.logit_scale
        self._tokens = self._tokenize(placeholder_texts(self.settings.names, len(self.p_G)))
        self.losses: list[float] = []

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, features (B, e) and labels (B,)."""
        if self.settings.method == "promptfl":
            loss = self._cross_entropy(self._encode(self._tokens, self.p_G), features, labels)
        else:
            z_G = self._encode(self._tokens, self.p_G)
            z_i = self._encode(self._tokens, self.p_G + self.U @ self.V)
            contrast = prompt_contrastive_loss(z_G, self._guidance, z_i, self.settings.tau)
            loss = self._cross_entropy(z_i, features, labels) + self.settings.mu * contrast
        self.losses.append(loss.item())
        return loss

    def metrics(self, features: Tensor, labels: Tensor) -> dict:
        """Return nothing: no side evaluates. pfl-research asks for this method."""
        return {}

    def mean_loss(self) -> float:
        """Return the mean of :attr:`losses`, and empty them."""
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        return mean

    def _cross_entropy(self, classifier: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._scale * features @ classifier.T, labels)

    @cached_property
    def _guidance(self) -> Tensor:
        """z_C: frozen, so computed once a process."""
        with torch.no_grad():
            return self._encode(self._tokenize(self.settings.sentences))


def train_one_round(learner: PromptLearner, data: ClientData, server_round: int) -> float:
    """Train a client for a round, as a plain loop; return its mean loss."""
    settings = learner.settings
    optimizer = torch.optim.SGD(
        learner.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    for features, labels in data.batches(server_round):
        optimizer.zero_grad()
        learner.loss(features, labels).backward()
        optimizer.step()
    return learner.mean_loss()
