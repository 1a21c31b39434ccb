"""Any open_clip model, frozen: loading, weights, encoding images and texts."""

from fedpgp.assets_path import SHIPPED
from fedpgp.clip.loading import SHORT_NAMES, load_clip
from fedpgp.clip.model import FrozenCLIP, resolve_device

__all__ = ["SHIPPED", "SHORT_NAMES", "FrozenCLIP", "load_clip", "resolve_device"]
