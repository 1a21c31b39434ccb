"""Any open_clip model, frozen: loading, weights, encoding images and texts."""

from fedpgp.assets_path import SHIPPED
from fedpgp.clip.loading import SHORT_NAMES, has_plain_text, load_clip
from fedpgp.clip.model import FrozenCLIP, resolve_device

__all__ = [
    "SHIPPED",
    "SHORT_NAMES",
    "FrozenCLIP",
    "has_plain_text",
    "load_clip",
    "resolve_device",
]
