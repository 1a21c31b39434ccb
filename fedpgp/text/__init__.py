"""Text features of prompted classes: the exact fast encoder, and full sequences for the rest."""

from fedpgp.text.prefix_shared import PromptedTextEncoder

__all__ = ["PromptedTextEncoder"]
