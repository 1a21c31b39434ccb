"""Text features of prompted classes: the exact fast encoder, low-rank adapters inside it, and full
sequences for the rest."""

from fedpgp.text.adapted import AdaptedTextEncoder
from fedpgp.text.prefix_shared import PromptedTextEncoder

__all__ = ["AdaptedTextEncoder", "PromptedTextEncoder"]
