"""``cross_domain``: trained on one data set, tested on the same classes in other images
(``datasets``; their mean is ``unseen``). ImageNet to ImageNetV2, -Sketch, -A and -R in
CoOp, FedTPG and their peers.

On the embedded federation: trained on Noto's emoji, tested on the five other vendors' drawings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpgp.data import Dataset
from fedpgp.errors import FedPGPError
from fedpgp.protocols.base import register
from fedpgp.protocols.cross_dataset import CrossDataset, Spec

VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
OTHER_STYLES = ("twemoji", "fluent", "fluent_flat", "high_contrast", "openmoji")


@register("cross_domain")
@dataclass(frozen=True)
class CrossDomain(CrossDataset):
    """Options: as ``cross_dataset``; a target's classes must all be trained ones."""

    def usual(self, dataset: str) -> tuple[Spec, Sequence[str | Spec]]:
        if dataset == "emoji":
            return {"domains": ["noto"]}, [
                {"name": "emoji", "domains": [style]} for style in OTHER_STYLES
            ]
        if dataset == "imagenet" or self.targets is not None:
            return {}, VARIANTS
        raise FedPGPError(
            f"protocol cross_domain knows no variants of {dataset}: name them, "
            "protocol.targets=[NAME,...] (or use dataset=imagenet or emoji)"
        )

    def accept(self, source: Dataset, target: Dataset) -> None:
        if strangers := sorted(set(target.class_names) - set(source.class_names)):
            raise FedPGPError(
                f"data set {target.name} has classes that {source.name} has not "
                f"({', '.join(strangers[:3])} …): it is no variant of it; use "
                "protocol=cross_dataset"
            )
