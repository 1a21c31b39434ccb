"""Make ``import torchvision`` work beside a CPU build of torch.

The index ships torchvision as a CUDA build. Beside a CPU torch its import fails with "operator torchvision::nms does
not exist", because the compiled operators cannot be loaded and yet their fake kernels are registered. Nothing here (or
in open_clip) uses those operators, so their schemas are declared and the import is tried again; only on that failure.

Import this module before anything that imports torchvision (open_clip, timm).
"""

import torch

_LIBRARY = None  # torch.library.Library unregisters its schemas when it is collected


def _declare_missing_operators() -> None:
    global _LIBRARY
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    import sys

    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    _declare_missing_operators()
    import torchvision  # noqa: F401
