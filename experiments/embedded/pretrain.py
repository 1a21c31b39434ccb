"""Pretrains the small CLIP models of the embedded federation on 2 CPU cores, in three stages that each go on where they stopped.

    python -m experiments.embedded.pretrain image --minutes 70     # image tower of `tiny`, with labels instead of captions
    python -m experiments.embedded.pretrain text --minutes 4       # a fresh text tower on the frozen image tower; writes tiny
    python -m experiments.embedded.pretrain distill --minutes 30   # a ViT taught by the image tower; writes tiny_vit

Why two stages for `tiny`: the image tower learns all that is known of a picture (which emoji it is, its Unicode subgroup, the
words of its names and tags), so that its features are strong. The text tower then learns from names and tags and hardly ever
from class names, so that zero-shot classification leaves something for a prompt to learn, as it does with CLIP on real data.

One style, `emojione-v1`, is kept out of training and only watched. No picture of the federation is used here.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads collapse when something else uses the other core

import numpy as np
import torch
import torch.nn.functional as F

import fedpgp._torchvision  # noqa: F401  open_clip needs it
from experiments.embedded import sources as src
from experiments.embedded.build_data import CLASSES
from experiments.embedded.corpus import Corpus, load_corpus, vocabulary

import open_clip  # isort: skip
from open_clip.tokenizer import SimpleTokenizer  # isort: skip
from safetensors.torch import save_file  # isort: skip

ASSETS = src.HERE.parents[1] / "fedpgp" / "assets"
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
WATCHED = "emojione-v1"
EMBED_DIM = 256
TEXT_CFG = {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4}
TINY_CFG = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {
        "timm_model_name": "regnetx_002",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 128,
    },
    "text_cfg": TEXT_CFG,
}
TINY_VIT_CFG = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": TEXT_CFG,
}
# Part of the time budget → side to which the 64-pixel pictures are scaled. A convolutional net may learn on small pictures
# first, which is twice as fast; it ends on the size that the model's configuration names.
RESOLUTIONS = ((0.5, 80), (0.8, 96), (1.0, 128))
BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARM_UP = 300  # steps
EMA_DECAY = 0.999
KIND_SHARES = {"emoji": 0.68, "matched": 0.12, "icon": 0.20}  # of a batch
UNFLIPPED = frozenset("alphanum keycap zodiac arrow time av-symbol punctuation math currency".split())  # mirrored = other sign


def autocast() -> torch.autocast:
    """bfloat16 where the processor multiplies it natively; elsewhere it is slower than float32."""
    fast = "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)


# --------------------------------------------------------------------------------------------------------------- pictures


def augment(images: torch.Tensor, size: int, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random drawing styles and positions.

    images: (B, 64, 64, 3) uint8 on white; flip: (B,) bool, whether a picture may be mirrored.
    Returns (B, 3, size, size) float in [0, 1].
    """

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    def chance(probability: float) -> torch.Tensor:
        return (rand(len(images), 1, 1, 1) < probability).float()

    batch = len(images)
    ink = 1 - images.permute(0, 3, 1, 2).float().div_(255)

    # drawing style: outlined, line art, black and white, one colour
    grey = ink.mean(1, keepdim=True)
    edges = F.max_pool2d(grey, 3, 1, 1) + F.max_pool2d(-grey, 3, 1, 1)
    edges = (edges * (2 + 4 * rand(batch, 1, 1, 1))).clamp_(0, 1)
    pick = rand(batch, 1, 1, 1)
    outlined, line_art, hard = (pick < 0.12).float(), ((pick >= 0.12) & (pick < 0.18)).float(), (pick > 0.88).float()
    ink = ink * (1 - line_art) + edges * line_art
    ink = torch.maximum(ink, edges * outlined)
    black = torch.sigmoid((ink.mean(1, keepdim=True) - (0.2 + 0.4 * rand(batch, 1, 1, 1))) * 25)
    ink = ink * (1 - hard) + black * hard

    # colours
    mix = torch.eye(3) + chance(0.5)[..., 0] * 0.35 * torch.randn(batch, 3, 3, generator=generator)
    ink = torch.einsum("bij,bjhw->bihw", mix, ink)
    dull = chance(0.2)
    ink = ink * (1 - dull) + ink.mean(1, keepdim=True) * dull
    tint = chance(0.3)
    ink = ink * (1 - tint * rand(batch, 3, 1, 1) * 0.9)
    ink = ink.clamp_(1e-4, 1) ** torch.exp(chance(0.4) * 0.5 * torch.randn(batch, 1, 1, 1, generator=generator))
    soft = chance(0.2)
    ink = ink * (1 - soft) + F.avg_pool2d(ink, 3, 1, 1) * soft

    # position
    scale = torch.exp(torch.empty(batch).uniform_(math.log(0.75), math.log(1.3), generator=generator))
    stretch = torch.exp(0.08 * torch.randn(batch, generator=generator))
    angle = 0.14 * torch.randn(batch, generator=generator)
    shear = 0.08 * torch.randn(batch, generator=generator)
    mirror = torch.where(flip & (rand(batch) < 0.5), -1.0, 1.0)
    shift = (rand(batch, 2) - 0.5) * 0.3
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([mirror * cos / scale / stretch, (shear - sin) / scale, shift[:, 0]], -1),
            torch.stack([mirror * sin / scale, cos / scale * stretch, shift[:, 1]], -1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    ink = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    # paper: tinted, rarely dark; a hole
    paper = 1 - chance(0.2) * 0.3 * rand(batch, 3, 1, 1)
    picture = (paper - ink * paper).clamp_(0, 1)
    inverted = chance(0.03)
    picture = picture * (1 - inverted) + (1 - picture) * inverted
    centre, radius = rand(batch, 2) * size, rand(batch) * size * 0.2
    rows = torch.arange(size)
    hole = ((rows[None] - centre[:, :1]).abs() < radius[:, None])[:, None, :, None] & (
        (rows[None] - centre[:, 1:]).abs() < radius[:, None]
    )[:, None, None, :]
    return torch.where(hole & (chance(0.25) > 0), paper, picture)


def normalize(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] → the model's input, channels last."""
    pictures = (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return pictures.contiguous(memory_format=torch.channels_last)


def plain(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 → normalized (B, 3, size, size), as the model's own preprocessing does it."""
    pictures = images.permute(0, 3, 1, 2).float().div_(255)
    if size != pictures.shape[-1]:
        pictures = F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)
    return normalize(pictures)


# ----------------------------------------------------------------------------------------------------------------- labels


class Labels:
    """What the image tower learns about each picture, as indices."""

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
        flippable = torch.tensor([item.subgroup not in UNFLIPPED for item in corpus.emoji_list] + [True])
        self.flip = flippable[self.emoji]
        in_classes = torch.tensor([item.subgroup in label_of for item in corpus.emoji_list] + [False])
        self.in_classes = in_classes[self.emoji]

    def word_targets(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, words) distributions, uniform over a picture's words; all zero where it has none."""
        target = torch.zeros(len(rows), len(self.vocabulary))
        for i, row in enumerate(rows.tolist()):
            if self.words[row]:
                target[i, self.words[row]] = 1 / len(self.words[row])
        return target


class Heads(torch.nn.Module):
    """Cosine classifiers over emoji, groups and words on the normalized image features; thrown away afterwards."""

    def __init__(self, emoji: int, groups: int, words: int):
        super().__init__()
        self.sizes = (emoji, groups, words)
        self.weight = torch.nn.Parameter(0.02 * torch.randn(sum(self.sizes), EMBED_DIM))
        self.scale = torch.nn.Parameter(torch.full((3,), math.log(20.0)))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """features (B, D) of unit length → logits over emoji, groups, words."""
        cosines = features @ F.normalize(self.weight, dim=-1).T
        parts = cosines.split(self.sizes, dim=1)
        return tuple(part * scale for part, scale in zip(parts, self.scale.exp().clamp(max=60), strict=True))


def sampler(corpus: Corpus, labels: Labels) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Rows and weights of the three kinds of pictures, without the watched style."""
    emoji_sources = {"emojione", "emojione-monotone", "fxemoji", "noto-v1", "streamline-emojis", "symbola"}
    names = np.array(corpus.source_list)[corpus.source]
    is_emoji_set = np.array([name in emoji_sources or name.startswith("noto-emoji") for name in names])
    known = corpus.emoji >= 0
    kept = (names != WATCHED) & np.array([bool(held) for held in labels.words])
    weight = np.where(labels.in_classes.numpy(), 1.0, 0.5)
    weight = np.where(np.char.startswith(names, "noto-emoji"), 0.5 * weight, weight)  # three weights of one drawing
    kinds = [is_emoji_set & known, ~is_emoji_set & known, ~known]
    rows = [torch.from_numpy(np.flatnonzero(kind & kept)) for kind in kinds]
    return rows, [torch.from_numpy(weight[r.numpy()]) for r in rows]


# ------------------------------------------------------------------------------------------------------------ image tower


def new_clip(config: dict) -> torch.nn.Module:
    """The untrained open_clip model that `config` describes."""
    vision = dict(config["vision_cfg"])
    return open_clip.CLIP(
        embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=dict(config["text_cfg"]), quick_gelu=config["quick_gelu"]
    )


def save_atomic(state: dict, path: Path) -> None:
    """torch.save that never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


@torch.no_grad()
def watch(visual: torch.nn.Module, heads: Heads, corpus: Corpus, labels: Labels) -> dict[str, float]:
    """Group and emoji accuracy (percent) on the watched style; for monitoring only."""
    rows = np.flatnonzero((corpus.source == corpus.source_list.index(WATCHED)) & labels.in_classes.numpy())
    features = encode(visual, corpus.images[rows], TINY_CFG["vision_cfg"]["image_size"])
    emoji, group, _ = heads(features)
    return {
        "watched_group": 100 * (group.argmax(1) == labels.group[rows]).float().mean().item(),
        "watched_emoji": 100 * (emoji.argmax(1) == labels.emoji[rows]).float().mean().item(),
    }


@torch.no_grad()
def encode(visual: torch.nn.Module, images: np.ndarray, size: int, batch: int = 256) -> torch.Tensor:
    """Unit-length features (N, D) of (N, 64, 64, 3) uint8 pictures, in evaluation mode, float32."""
    training = visual.training
    visual.eval()
    parts = []
    for start in range(0, len(images), batch):
        with autocast():
            features = visual(plain(torch.from_numpy(images[start : start + batch]), size))
        parts.append(F.normalize(features.float(), dim=-1))
    visual.train(training)
    return torch.cat(parts)


def train_image(work: Path, minutes: float, seed: int, name: str) -> None:
    """Stage 1. The learning rate follows the part of the time budget that is used, so the budget is always used well."""
    corpus = load_corpus(work)
    labels = Labels(corpus)
    rows, weights = sampler(corpus, labels)
    print(f"pictures: {[len(r) for r in rows]}; groups {len(labels.group_names)}; words {len(labels.vocabulary)}", flush=True)
    torch.manual_seed(seed)
    visual = new_clip(TINY_CFG).visual.to(memory_format=torch.channels_last)
    heads = Heads(len(corpus.emoji_list), len(labels.group_names), len(labels.vocabulary))
    matrices = [p for p in visual.parameters() if p.ndim > 1]
    others = [p for p in visual.parameters() if p.ndim <= 1] + list(heads.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}], lr=LEARNING_RATE
    )
    average = {key: value.clone() for key, value in visual.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    path = work / name / "image.pt"
    step, used, seen = 0, 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        visual.load_state_dict(state["visual"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        generator.set_state(state["generator"])
        step, used, seen = state["step"], state["seconds"], state["pictures"]
        print(f"going on at step {step}, {used / 60:.1f} minutes used", flush=True)

    def checkpoint() -> None:
        state = {
            "visual": visual.state_dict(),
            "heads": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "generator": generator.get_state(),
            "step": step,
            "seconds": used,
            "pictures": seen,
            "seed": seed,
        }
        save_atomic(state, path)

    counts = [round(BATCH * share) for share in KIND_SHARES.values()]
    log = {"loss": 0.0, "emoji": 0.0, "group": 0.0, "words": 0.0}
    logged, log_step, last_save = time.time(), step, time.time()
    started = time.time() - used
    visual.train()
    while used < 60 * minutes:
        progress = used / (60 * minutes)
        size = next(side for until, side in RESOLUTIONS if progress < until or until == 1.0)
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = torch.cat(
            [r[torch.multinomial(w, n, generator=generator)] for r, w, n in zip(rows, weights, counts, strict=True)]
        )
        pictures = augment(torch.from_numpy(corpus.images[picked.numpy()]), size, labels.flip[picked], generator)
        with autocast():
            features = visual(normalize(pictures))
        logits = heads(F.normalize(features.float(), dim=-1))
        known = labels.emoji[picked] >= 0
        emoji_loss = F.cross_entropy(logits[0][known], labels.emoji[picked][known], label_smoothing=0.05)
        group_loss = F.cross_entropy(logits[1][known], labels.group[picked][known], label_smoothing=0.05)
        word_loss = F.cross_entropy(logits[2], labels.word_targets(picked))
        loss = emoji_loss + group_loss + 0.7 * word_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            for key, value in visual.state_dict().items():
                if value.dtype.is_floating_point:
                    average[key].lerp_(value, 1 - decay)
                else:
                    average[key].copy_(value)
        step, seen, used = step + 1, seen + len(picked), time.time() - started
        for key, value in zip(log, (loss, emoji_loss, group_loss, word_loss), strict=True):
            log[key] += value.item()
        if step % 100 == 0:
            per_step = {key: round(value / (step - log_step), 3) for key, value in log.items()}
            rate_now = BATCH * (step - log_step) / (time.time() - logged)
            print(f"step {step} min {used / 60:.1f} size {size} lr {rate:.2e} {per_step} {rate_now:.0f} pictures/s", flush=True)
            log, logged, log_step = dict.fromkeys(log, 0.0), time.time(), step
        if time.time() - last_save > 120:
            checkpoint()
            last_save = time.time()
            if step % 3 == 0:
                averaged = new_clip(TINY_CFG).visual
                averaged.load_state_dict(average)
                print({key: round(value, 1) for key, value in watch(averaged, heads, corpus, labels).items()}, flush=True)
    checkpoint()
    print(f"done: {step} steps, {seen} pictures, {used / 60:.1f} minutes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("image", "text", "distill"))
    parser.add_argument("--minutes", type=float, required=True, help="time budget of the stage, over all its sittings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="tiny", help="folder for checkpoints inside the work folder (default %(default)s)")
    parser.add_argument("--work", type=Path, default=src.DEFAULT_WORK, help="work folder (default %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "image":
        train_image(arguments.work, arguments.minutes, arguments.seed, arguments.name)


if __name__ == "__main__":
    main()
