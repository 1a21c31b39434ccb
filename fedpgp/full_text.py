"""Prompting any text tower by full sequences: the path for what cannot share a prefix.

Towers that are not causal (MobileCLIP-S, SigLIP), a class name before or between the context vectors, and a context of
its own for each class all run through the model's own forward, with the token embeddings of placeholder words replaced
by the context. It costs one full sequence a class and context.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.errors import FedPGPError
from fedpgp.frozen import FrozenCLIP, word_ids

PLACEHOLDER = "X"


class FullSequences:
    """Contexts -> text features through the model's own forward.

    Args:
        clip: the frozen model.
        class_names: with spaces, not underscores.
        n_ctx: number of context vectors.
        position: of the class name: ``end``, ``middle`` (half of the context before it, rounded down) or ``front``.

    Raises:
        FedPGPError: a class name that does not fit.
    """

    def __init__(self, clip: FrozenCLIP, class_names: Sequence[str], n_ctx: int, position: str):
        self.clip = clip
        self.embedding = clip.text_model.token_embedding
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        rows, places = [], []
        marker = word_ids(clip.tokenizer, PLACEHOLDER)[0]
        start = clip.tokenizer([PLACEHOLDER])[0].tolist().index(marker)  # 1 behind a start token, 0 without one
        for name in class_names:
            ids = word_ids(clip.tokenizer, name)
            words = [PLACEHOLDER] * before + [name] + [PLACEHOLDER] * (n_ctx - before)
            tokens = clip.tokenizer([" ".join(words) + "."])[0]
            if start + n_ctx + len(ids) + 2 > len(tokens):
                raise FedPGPError(
                    f"class name {name!r} has {len(ids)} tokens; beside {n_ctx} context tokens it does not fit into "
                    f"the model's {len(tokens)}: shorten the name or n_ctx"
                )
            mine = [start + i if i < before else start + len(ids) + i for i in range(n_ctx)]
            if any(int(tokens[i]) != marker for i in mine):
                raise FedPGPError(
                    f"class name {name!r} cannot be placed at the {position} of a prompt by this model's tokenizer"
                )
            rows.append(tokens)
            places.append(mine)
        self.tokens = torch.stack(rows).to(clip.device)
        self.places = torch.tensor(places, device=clip.device)

    def __call__(self, context: Tensor) -> Tensor:
        """(n, n_ctx, d), or (n, classes, n_ctx, d) for a context a class -> unit-norm (n, classes, embed)."""
        classes, n = len(self.tokens), len(context)
        if context.dim() == 3:
            context = context.unsqueeze(1).expand(-1, classes, -1, -1)
        context = context.flatten(0, 1)
        places = self.places.repeat(n, 1).unsqueeze(-1).expand(-1, -1, context.shape[-1])

        def prompt(module: nn.Module, inputs: tuple, embedded: Tensor) -> Tensor:
            return embedded.scatter(1, places, context.to(embedded.dtype))

        hook = self.embedding.register_forward_hook(prompt)
        try:
            features = self.clip.model.encode_text(self.tokens.repeat(n, 1))
        finally:
            hook.remove()
        return F.normalize(features, dim=-1).view(n, classes, -1)
