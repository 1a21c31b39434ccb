"""The losses, each with any leading axes (clients first), so that a cohort's losses are
one tensor operation."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of each client's batch:
    ``sum_b w_b (logsumexp(logits_b) - logits_b[label_b])``.

    Args:
        logits: (..., B, C).
        labels: (..., B), int64 columns of ``logits``.
        weights: (..., B); they sum to one over a client's real images and are zero for padding.

    Returns:
        (...)
    """
    picked = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return ((logits.logsumexp(-1) - picked) * weights).sum(-1)


def prompt_contrastive_loss(
    anchor: Tensor, positive: Tensor | None, negative: Tensor | None, temperature: float
) -> Tensor:
    """Prompt-wise contrastive loss (FedPGP, section 3): one positive and one
    negative for each class.

    ``mean_c -log( exp(s+/tau) / (exp(s+/tau) + exp(s-/tau)) )`` with
    ``s+ = cos(anchor_c, positive_c)``, ``s- = cos(anchor_c, negative_c)``; that is
    ``mean_c softplus((s- - s+)/tau)``.

    Args:
        anchor: z_G, the features under the global context, (..., C, e).
        positive: z_C, the frozen guidance, (..., C, e); None: its similarity is 0 (ablation).
        negative: z_i, the features under the personal context, (..., C, e); None likewise.
        temperature: tau.

    Returns:
        (...): the mean over classes. Leading axes broadcast.
    """
    attract = 0 if positive is None else F.cosine_similarity(anchor, positive, dim=-1)
    repel = 0 if negative is None else F.cosine_similarity(anchor, negative, dim=-1)
    return F.softplus((repel - attract) / temperature).mean(-1)
