"""What methods with low-rank adapters in the towers have in common: settings, tensors, classifiers.

No prompt is learned: every class is read in the plain template, "a photo of a {class}.".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedpgp.errors import FedPGPError, check_choice, check_number, shown
from fedpgp.methods.base import Classifier, Images, Method, Params, cosine_logits
from fedpgp.step_work import StepSize, Work, tower_gflop
from fedpgp.task import ClassSet, Task
from fedpgp.text.templates import PLAIN
from fedpgp.towers.adapters import TARGETS, Adapters, Placement
from fedpgp.towers.image import ImageTower

PHRASE = PLAIN.removesuffix(" {}.")
TOWERS = {"text": ("text",), "image": ("image",), "both": ("text", "image")}
"""What ``method.where`` names -> the towers."""


@dataclass(frozen=True)
class LoRASettings:
    """Settings of every method with low-rank adapters.

    Attributes:
        where: the tower that has them: ``text``, ``image`` or ``both``.
        targets: the linear layers that have them: ``q``, ``k``, ``v``, ``out`` of attention, and
            ``mlp``, both layers of the MLP.
        blocks: with adapters: ``all``, or ``last_N``.
        rank: b, of an adapter.
        alpha: an adapter counts alpha / b.
    """

    where: str = "text"
    targets: Sequence[str] = ("q", "v")
    blocks: str = "all"
    rank: int = 8
    alpha: float = 16

    def __post_init__(self):
        check_choice("method.where", self.where, TOWERS)
        if not isinstance(self.targets, (list, tuple)) or not self.targets:
            raise FedPGPError(
                f"method.targets={shown(self.targets)} cannot work; it is a list such as [q,v], of "
                f"{', '.join(TARGETS)}"
            )
        for target in self.targets:
            check_choice("method.targets", target, TARGETS)
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.blocks != "all" and not re.fullmatch(r"last_[1-9]\d{0,3}", str(self.blocks)):
            raise FedPGPError(
                f"method.blocks={shown(self.blocks)} cannot work; it is all, or last_N such as "
                "last_2"
            )
        check_number("method.rank", self.rank, least=1, whole=True)
        check_number("method.alpha", self.alpha, above=0)


class LoRA(Method):
    """Adapters: ``"TOWER.LAYER.A"`` (L, b, in) and ``"TOWER.LAYER.B"`` (L, out, b) of each of the L
    blocks that have them; TOWER is ``text`` or ``image``."""

    Settings = LoRASettings
    settings: LoRASettings
    small: ClassVar = {"rank": 2}
    private: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of the adapters that a client's own model has beside the others."""

    def __init__(self, settings: LoRASettings, task: Task):
        super().__init__(settings, task)
        self.towers = TOWERS[settings.where]
        if "image" in self.towers:
            self.inputs = ("pixels",)
            self.per_image = "copies"

    @cached_property
    def tower(self) -> ImageTower | None:
        """The image tower, where it has adapters."""
        if "image" not in self.towers:
            return None
        return ImageTower(self.task.clip, self.task.dtype, self.name)

    @cached_property
    def placements(self) -> dict[str, Placement]:
        """Which layers of each tower have an adapter.

        Raises:
            FedPGPError: more blocks than a tower has.
        """
        chosen = [layer for target in self.settings.targets for layer in TARGETS[target]]
        layers = tuple(layer for layers in TARGETS.values() for layer in layers if layer in chosen)
        found = {}
        for tower in self.towers:
            blocks, width, hidden = self._sizes(tower)
            count = blocks if self.settings.blocks == "all" else int(self.settings.blocks[5:])
            if count > blocks:
                raise FedPGPError(
                    f"method.blocks={self.settings.blocks}: the {tower} tower of this model has "
                    f"{blocks} blocks"
                )
            found[tower] = Placement(layers, blocks - count, blocks, width, hidden)
        return found

    def _sizes(self, tower: str) -> tuple[int, int, int]:
        """A tower's blocks, its width, and that of its MLPs."""
        if tower == "image":
            return self.tower.depth, self.tower.width, len(self.tower.blocks[0].fc_weight)
        clip = self.task.clip

        def hidden() -> int:
            return clip.text_model.transformer.resblocks[0].mlp.c_fc.out_features

        return clip.text_blocks, clip.width, clip.cached("text mlp width", hidden)

    @property
    def places(self) -> list[str]:
        """Every ``"TOWER.LAYER"`` with adapters."""
        return [f"{tower}.{layer}" for tower, at in self.placements.items() for layer in at.layers]

    def start_A(self, rng: np.random.Generator, rank: int | None = None) -> Params:
        """Return every adapter's A at its start; of ``method.rank`` by default."""
        return {
            f"{tower}.{name}": tensor
            for tower, placement in self.placements.items()
            for name, tensor in placement.start_A(rank or self.settings.rank, rng).items()
        }

    def start_B(self, rank: int | None = None) -> Params:
        """Return every adapter's B at its start, zeros; of ``method.rank`` by default."""
        return {
            f"{tower}.{name}": tensor
            for tower, placement in self.placements.items()
            for name, tensor in placement.start_B(rank or self.settings.rank).items()
        }

    def contexts(self, training: bool) -> int:
        return 2 if "text" in self.towers else 1

    def image_values(self, images: int) -> int:
        return self.tower.values(images) if self.tower else 0

    def adapters(self, params: Params, *more: str) -> Params:
        """Return adapters as the towers take them: ``"TOWER.LAYER.A"`` (K, L, b, in) and
        ``"TOWER.LAYER.B"`` (K, L, out, b), which holds the factor alpha / b.

        Args:
            params: (K, ...).
            more: prefixes of the names of further adapters, which are added to these.
        """
        tensors: Params = {}
        for place in self.places:
            downs = [params[f"{prefix}{place}.A"] for prefix in ("", *more)]
            ups = [params[f"{prefix}{place}.B"] for prefix in ("", *more)]
            tensors[f"{place}.A"] = torch.cat(downs, dim=-2)
            scaled = [B * (self.settings.alpha / B.shape[-1]) for B in ups]
            tensors[f"{place}.B"] = torch.cat(scaled, dim=-1)
        return tensors

    def classifier(self, adapters: Params, classes: ClassSet) -> Classifier:
        """Return class features (K, C, e) under what :meth:`adapters` gives; with adapters in the
        image tower, as ``"texts"`` beside these."""
        texts = self.texts(adapters, classes)
        if self.tower is None:
            return texts
        inside = {name: t for name, t in adapters.items() if name.startswith("image.")}
        return {"texts": texts, **inside}

    def texts(self, adapters: Params, classes: ClassSet) -> Tensor:
        """Return class features under what :meth:`adapters` gives, unit norm, (K, C, e)."""
        if "text" not in self.towers:
            clients = len(next(iter(adapters.values())))
            return classes.features_of(PLAIN).expand(clients, -1, -1)
        encoder = classes.adapted_encoder(PHRASE, self.placements["text"].first)
        return encoder.encode_adapted(*of_tower("text", adapters))

    def logits(self, classifier: Classifier, images: Images, classes: ClassSet) -> Tensor:
        if self.tower is None:
            return super().logits(classifier, images, classes)
        tensors, dense = of_tower("image", classifier)
        first = self.placements["image"].first
        adapters = Adapters(tensors, first, self.tower.folds, dense)
        x = self.tower(images.pixels, adapters=adapters)
        return cosine_logits(classifier["texts"], x, self.task.logit_scale)

    @property
    def answers_by_cosine(self) -> bool:
        return self.tower is None

    def global_classifier(self, shared: Params, classes: ClassSet) -> Classifier | None:
        return self.classifier(self.adapters(shared), classes)

    def step_work(self, size: StepSize) -> Work:
        return self.work(size, self.settings.rank)

    def work(
        self, size: StepSize, rank: int, trained: float = 1.0, towers: Sequence[str] = ()
    ) -> Work:
        """The towers with adapters: forward, and back to the first ones. The text tower begins at
        these, and their frozen queries, keys and values are known.

        Args:
            size: of the step.
            rank: of the adapters, those that are added together as one.
            trained: fraction of their tensors that are.
            towers: through which the step goes; by default all that have adapters.
        """
        work = Work(0.0, 0, 0)
        for tower in towers or self.towers:
            at = self.placements[tower]
            behind = at.blocks - at.first
            if tower == "text":
                copies, read = 1, len(size.classes.names)
                tokens = size.classes.adapted_encoder(PHRASE, at.first).tokens
                known = tokens if behind > 1 else (2 * tokens + read) / 3
                flop = 2 * tower_gflop(at.width, behind, tokens, read=read, constant=known)
            else:
                copies, read, tokens = size.images, 1, self.tower.tokens
                flop = tower_gflop(at.width, at.blocks, tokens, read=1) + size.tower.embedding_gflop
                flop += tower_gflop(at.width, behind, tokens, read=1, constant=tokens)
            work += Work(copies * flop, copies * tokens, at.width)
            for layer, rows in self.rows(size, tower).items():
                numbers = 2 * (2 + trained) * rank * sum(at.sizes(layer))
                work += Work(rows * numbers / 1e9, rows, at.width)
        return work

    def rows(self, size: StepSize, tower: str) -> dict[str, int]:
        """Return how many tokens each layer with adapters reads in a step, over all its blocks."""
        at = self.placements[tower]
        if tower == "text":
            tokens = size.classes.adapted_encoder(PHRASE, at.first).tokens
            copies, read = 1, len(size.classes.names)
        else:
            copies, read, tokens = size.images, 1, self.tower.tokens
        return {
            layer: copies * rows_read(layer, at.blocks - at.first, tokens, read)
            for layer in at.layers
        }


def rows_read(layer: str, blocks: int, tokens: int, read: int) -> int:
    """Return how many tokens a layer reads in so many blocks: in the last one, queries, output and
    MLP read those alone that are read behind it."""
    return (blocks - 1) * tokens + (tokens if layer in ("k", "v") else read)


def of_tower(tower: str, tensors: Mapping[str, Tensor]) -> tuple[Params, Params]:
    """Return a tower's adapters, ``"LAYER.A"`` and ``"LAYER.B"``, and what its weights change by
    for all clients alike: layer -> (L, out, in), from ``"TOWER.LAYER.R"``."""
    prefix = f"{tower}."
    mine = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    dense = {name.removesuffix(".R"): t[0] for name, t in mine.items() if name.endswith(".R")}
    return {name: t for name, t in mine.items() if not name.endswith(".R")}, dense
