"""The text pass as a textbook has it: every class's full token sequence through the model's own
transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def encode_text(model: nn.Module, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """Return the features of token sequences, (C, e), unit norm.

    Args:
        model: text tower of open_clip.
        tokens: of every class, (C, 77) ids, with a placeholder for each context vector.
        context: (m, d), in the place of the tokens behind the first; None leaves them.
    """
    x = model.token_embedding(tokens)
    if context is not None:
        behind = x[:, 1 + len(context) :]
        x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), behind], dim=1)
    x = model.ln_final(model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection, dim=-1)


def placeholder_texts(names: list[str], n_ctx: int) -> list[str]:
    """Return each class name behind as many placeholder words as the context is long."""
    return ["X " * n_ctx + name.replace("_", " ") + "." for name in names]
