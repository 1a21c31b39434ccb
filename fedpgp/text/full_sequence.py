"""Prompting any text tower by full sequences: the path for what cannot share a prefix.

Towers that are not causal (MobileCLIP-S, SigLIP) or not CLIP's (RoBERTa, T5), a class name before
or between the context vectors, and a context of its own for each class all run through the model's
own forward, with the token embeddings of placeholder words replaced by the context. It costs one
full sequence a class and context.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip.model import FrozenCLIP


class FullSequences:
    """Contexts -> text features through the model's own forward.

    Args:
        clip: the frozen model.
        class_names: with spaces, not underscores.
        n_ctx: m, number of context vectors.
        position: of the class name: ``end``, ``middle`` (half of the context before it,
            rounded down) or ``front``.

    Raises:
        FedPGPError: a class name that does not fit.
    """

    def __init__(self, clip: FrozenCLIP, class_names: Sequence[str], n_ctx: int, position: str):
        self.clip = clip
        tokens, places = clip.reader.prompts(class_names, n_ctx, position, clip.context_length)
        self.tokens = torch.tensor(tokens, device=clip.device)
        self.places = torch.tensor(places, device=clip.device)

    def __call__(self, context: Tensor, unit: bool = True) -> Tensor:
        """(n, m, d), or (n, C, m, d) for a context a class -> (n, C, e), of unit norm or as the
        text tower makes them."""
        classes, n = len(self.tokens), len(context)
        if context.dim() == 3:
            context = context.unsqueeze(1).expand(-1, classes, -1, -1)
        context = context.flatten(0, 1)
        places = self.places.repeat(n, 1).unsqueeze(-1).expand(-1, -1, context.shape[-1])

        def prompt(module: nn.Module, inputs: tuple, embedded: Tensor) -> Tensor:
            return embedded.scatter(1, places, context.to(embedded.dtype))

        hook = self.clip.token_embedding.register_forward_hook(prompt)
        try:
            features = self.clip.model.encode_text(self.tokens.repeat(n, 1))
        finally:
            hook.remove()
        return (F.normalize(features, dim=-1) if unit else features).view(n, classes, -1)
