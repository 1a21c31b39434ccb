"""The pretraining images' labels (emoji, group, words), the classifiers over them, and
how a batch is drawn."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from tools.embedded.build_data import CLASSES
from tools.embedded.corpus import Corpus, vocabulary
from tools.embedded.models import EMBED_DIM

WATCHED = "emojione-v1"
KIND_FRACTIONS = {"emoji": 0.68, "matched": 0.12, "icon": 0.20}  # of a batch
UNFLIPPED = frozenset(
    [
        "alphanum",
        "keycap",
        "zodiac",
        "arrow",
        "time",
        "av-symbol",
        "punctuation",
        "math",
        "currency",
    ]
)  # mirrored = other sign


class Labels:
    """What the image tower learns about each image, as indices."""

    def __init__(self, corpus: Corpus):
        label_of = {subgroup: name for name, subgroups in CLASSES for subgroup in subgroups}
        groups = [label_of.get(item.subgroup, item.subgroup) for item in corpus.emoji_list]
        self.group_names = sorted(set(groups))
        self.emoji = torch.from_numpy(corpus.emoji)
        of_emoji = torch.tensor([self.group_names.index(group) for group in groups] + [-1])
        self.group = of_emoji[self.emoji]  # -1 picks the last entry
        self.vocabulary = vocabulary(corpus)
        index = {word: i for i, word in enumerate(self.vocabulary)}
        self.words = [[index[word] for word in held if word in index] for held in corpus.words]
        flippable = torch.tensor(
            [item.subgroup not in UNFLIPPED for item in corpus.emoji_list] + [True]
        )
        self.flip = flippable[self.emoji]
        in_classes = torch.tensor(
            [item.subgroup in label_of for item in corpus.emoji_list] + [False]
        )
        self.in_classes = in_classes[self.emoji]

    def word_targets(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, words) distributions, uniform over an image's words; all zero where it has none."""
        target = torch.zeros(len(rows), len(self.vocabulary))
        for i, row in enumerate(rows.tolist()):
            if self.words[row]:
                target[i, self.words[row]] = 1 / len(self.words[row])
        return target


class Heads(torch.nn.Module):
    """Cosine classifiers over emoji, groups and words on the normalized image features;
    thrown away afterwards."""

    def __init__(self, emoji: int, groups: int, words: int):
        super().__init__()
        self.sizes = (emoji, groups, words)
        self.weight = torch.nn.Parameter(0.02 * torch.randn(sum(self.sizes), EMBED_DIM))
        self.scale = torch.nn.Parameter(torch.full((3,), math.log(20.0)))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """features (B, D) of unit length → logits over emoji, groups, words."""
        cosines = features @ F.normalize(self.weight, dim=-1).T
        parts = cosines.split(self.sizes, dim=1)
        return tuple(
            part * scale for part, scale in zip(parts, self.scale.exp().clamp(max=60), strict=True)
        )


def sampler(corpus: Corpus, labels: Labels) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Rows and weights of the three kinds of images, without the watched style."""
    emoji_sources = {
        "emojione",
        "emojione-monotone",
        "fxemoji",
        "noto-v1",
        "streamline-emojis",
        "symbola",
    }
    names = np.array(corpus.source_list)[corpus.source]
    is_emoji_set = np.array(
        [name in emoji_sources or name.startswith("noto-emoji") for name in names]
    )
    known = corpus.emoji >= 0
    kept = (names != WATCHED) & np.array([bool(held) for held in labels.words])
    weight = np.where(labels.in_classes.numpy(), 1.0, 0.5)
    weight = np.where(
        np.char.startswith(names, "noto-emoji"), 0.5 * weight, weight
    )  # three weights of one drawing
    kinds = [is_emoji_set & known, ~is_emoji_set & known, ~known]
    rows = [torch.from_numpy(np.flatnonzero(kind & kept)) for kind in kinds]
    return rows, [torch.from_numpy(weight[r.numpy()]) for r in rows]
