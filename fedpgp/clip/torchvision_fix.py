"""Import torchvision and open_clip beside a CPU build of torch.

Package indexes ship torchvision as a CUDA build. Beside a CPU torch its import fails with "operator
torchvision::nms does not exist": its compiled operators cannot be loaded, and yet their fake
kernels are registered. Nothing here (or in open_clip) uses those operators, so their schemas are
declared and the import is tried again; only on that failure.
"""

import sys
from functools import cache
from types import ModuleType

import torch


@cache
def fix_torchvision() -> torch.library.Library | None:
    """Make ``import torchvision`` work; call it before anything that imports
    torchvision (open_clip, timm).

    Returns:
        the declared schemas, which last as long as this object; None where none are missing.
    """
    try:
        import torchvision  # noqa: F401

        return None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [
        name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")
    ]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return library


def import_open_clip() -> ModuleType:
    """Import open_clip, which imports torchvision."""
    fix_torchvision()
    import open_clip

    return open_clip
