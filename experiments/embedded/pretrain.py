"""Pretrains the small CLIP models of the embedded federation on 2 CPU cores; each stage goes on where it stopped.

    python -m experiments.embedded.pretrain image --minutes 60     # image tower of `tiny`, from labels, not captions
    python -m experiments.embedded.pretrain image --minutes 60 --start fedpgp/assets/tiny   # … from a finished one
    python -m experiments.embedded.pretrain text --minutes 5       # text tower on the frozen image tower; writes tiny
    python -m experiments.embedded.pretrain distill --minutes 30   # a ViT taught by the image tower; writes tiny_vit

Why two stages for `tiny`: the image tower learns all that is known of a picture (which emoji it is, its Unicode
subgroup, the words of its names and tags), so that its features are strong. The text tower then learns from names and
tags and hardly ever from class names, so that zero-shot classification leaves something for a prompt to learn, as it
does with CLIP on real data.

One style, `emojione-v1`, is kept out of training and only watched. No picture of the federation is used here.
"""

import argparse
import json
import math
import os
import random
import time
import types
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
from safetensors.torch import load_file, save_file  # isort: skip

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
# Part of the time budget → side to which the 64-pixel pictures are scaled. A convolutional net may learn on small
# pictures first, which is several times as fast, but has to end, at a rate that still moves it, on the size that the
# model's configuration names: 128 pixels, 4x4 positions. `--size` holds the size for a sitting instead.
RESOLUTIONS = ((0.45, 64), (0.65, 80), (0.75, 96), (1.0, 128))
BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARM_UP = 300  # steps
EMA_DECAY = 0.999
KIND_SHARES = {"emoji": 0.68, "matched": 0.12, "icon": 0.20}  # of a batch
UNFLIPPED = frozenset(
    ["alphanum", "keycap", "zodiac", "arrow", "time", "av-symbol", "punctuation", "math", "currency"]
)  # mirrored = other sign


def autocast() -> torch.autocast:
    """bfloat16 where the processor multiplies it natively; elsewhere it is slower than float32."""
    fast = "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)


# ------------------------------------------------------------------------------------------------------------- pictures


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

    # drawing style, for a part of the pictures: outlined, line art, black and white
    order = torch.randperm(batch, generator=generator)
    outlined, line_art, hard, soft = order.split(
        [batch // 8, batch // 16, batch // 8, batch - 2 * (batch // 8) - batch // 16]
    )
    soft = soft[: batch // 6]
    for chosen in (outlined, line_art):
        grey = ink[chosen].mean(1, keepdim=True)
        edges = F.max_pool2d(grey, 3, 1, 1) + F.max_pool2d(-grey, 3, 1, 1)
        edges = (edges * (2 + 4 * rand(len(chosen), 1, 1, 1))).clamp_(0, 1)
        ink[chosen] = torch.maximum(ink[chosen], edges) if chosen is outlined else edges.expand(-1, 3, -1, -1)
    threshold = 0.2 + 0.4 * rand(len(hard), 1, 1, 1)
    ink[hard] = torch.sigmoid((ink[hard].mean(1, keepdim=True) - threshold) * 25).expand(-1, 3, -1, -1)
    ink[soft] = F.avg_pool2d(ink[soft], 3, 1, 1)

    # colours
    mix = torch.eye(3) + chance(0.5)[..., 0] * 0.35 * torch.randn(batch, 3, 3, generator=generator)
    ink = torch.einsum("bij,bjhw->bihw", mix, ink)
    dull = chance(0.2)
    ink = ink * (1 - dull) + ink.mean(1, keepdim=True) * dull
    tint = chance(0.3)
    ink = ink * (1 - tint * rand(batch, 3, 1, 1) * 0.9)
    ink = ink.clamp_(1e-4, 1) ** torch.exp(chance(0.4) * 0.5 * torch.randn(batch, 1, 1, 1, generator=generator))

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


# --------------------------------------------------------------------------------------------------------------- labels


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


# ---------------------------------------------------------------------------------------------------------- image tower


def new_clip(config: dict) -> torch.nn.Module:
    """The untrained open_clip model that `config` describes."""
    vision = dict(config["vision_cfg"])
    return open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=vision,
        text_cfg=dict(config["text_cfg"]),
        quick_gelu=config["quick_gelu"],
    )


def _stem_forward(self: torch.nn.Conv2d, pictures: torch.Tensor) -> torch.Tensor:
    pictures = F.pad(pictures.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    height, width = (pictures.shape[1] - 1) // 2, (pictures.shape[2] - 1) // 2
    patches = [pictures[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
    weight = self.weight.permute(0, 2, 3, 1).reshape(self.weight.shape[0], -1)
    return F.linear(torch.cat(patches, -1), weight).permute(0, 3, 1, 2)


def speed_up_stem(visual: torch.nn.Module) -> None:
    """The first 3x3 stride-2 convolution as a matrix product: the same numbers.

    The processor's convolution kernels need a third of a whole training step for the weight gradient of this one layer.
    """
    conv = visual.trunk.stem.conv
    conv.forward = types.MethodType(_stem_forward, conv)


def save_atomic(state: dict, path: Path) -> None:
    """torch.save that never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


@torch.no_grad()
def watch(visual: torch.nn.Module, heads: Heads, corpus: Corpus, labels: Labels, size: int) -> dict[str, float]:
    """Group and emoji accuracy (percent) on the watched style; for monitoring only."""
    rows = np.flatnonzero((corpus.source == corpus.source_list.index(WATCHED)) & labels.in_classes.numpy())
    features = encode(visual, corpus.images[rows], size)
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


class Budget:
    """Seconds of work over all sittings. A step that took longer than ``LONGEST`` was paused; the pause is not work."""

    LONGEST = 20.0

    def __init__(self, used: float):
        self.used, self._last = used, time.monotonic()

    def tick(self) -> float:
        """Adds the time since the last call; returns the total."""
        now = time.monotonic()
        self.used += min(now - self._last, self.LONGEST)
        self._last = now
        return self.used


def finished_image_tower(folder: Path) -> dict[str, torch.Tensor]:
    """The image tower's weights of a model that :func:`write_model` wrote, in float32."""
    return {
        key.removeprefix("visual."): value.float() if value.dtype.is_floating_point else value
        for key, value in load_file(folder / "open_clip_model.safetensors").items()
        if key.startswith("visual.")
    }


def train_image(
    work: Path,
    minutes: float,
    seed: int,
    name: str,
    fixed_size: int | None = None,
    peak_rate: float = LEARNING_RATE,
    start: Path | None = None,
) -> None:
    """Stage 1. The learning rate follows the used part of the time budget, however fast the machine is.

    ``start`` is the folder of a finished model whose image tower the first sitting begins from.
    """
    corpus = load_corpus(work)
    labels = Labels(corpus)
    rows, weights = sampler(corpus, labels)
    print(
        f"pictures: {[len(r) for r in rows]}; groups {len(labels.group_names)}; words {len(labels.vocabulary)}",
        flush=True,
    )
    torch.manual_seed(seed)
    visual = new_clip(TINY_CFG).visual.to(memory_format=torch.channels_last)
    if start is not None:
        visual.load_state_dict(finished_image_tower(start))
    speed_up_stem(visual)
    heads = Heads(len(corpus.emoji_list), len(labels.group_names), len(labels.vocabulary))
    matrices = [p for p in visual.parameters() if p.ndim > 1]
    others = [p for p in visual.parameters() if p.ndim <= 1] + list(heads.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        fused=True,
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
    budget = Budget(used)
    visual.train()
    while used < 60 * minutes:
        progress = used / (60 * minutes)
        size = fixed_size or next(side for until, side in RESOLUTIONS if progress < until or until == 1.0)
        rate = peak_rate * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress))
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
        step, seen, used = step + 1, seen + len(picked), budget.tick()
        for key, value in zip(log, (loss, emoji_loss, group_loss, word_loss), strict=True):
            log[key] += value.item()
        if step % 100 == 0:
            per_step = {key: round(value / (step - log_step), 3) for key, value in log.items()}
            rate_now = BATCH * (step - log_step) / (time.time() - logged)
            print(
                f"step {step} min {used / 60:.1f} size {size} lr {rate:.2e} {per_step} {rate_now:.0f} pictures/s",
                flush=True,
            )
            log, logged, log_step = dict.fromkeys(log, 0.0), time.time(), step
        if time.time() - last_save > 120:
            checkpoint()
            last_save = time.time()
            if step % 3 == 0:
                averaged = new_clip(TINY_CFG).visual
                averaged.load_state_dict(average)
                print(
                    {key: round(value, 1) for key, value in watch(averaged, heads, corpus, labels, size).items()},
                    flush=True,
                )
    checkpoint()
    print(f"done: {step} steps, {seen} pictures, {used / 60:.1f} minutes", flush=True)


# ----------------------------------------------------------------------------------------------------------- text tower

TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "an emoji of a {}.",
    "a symbol of a {}.",
    "a small picture of a {}.",
    "a black and white drawing of a {}.",
    "a flat drawing of a {}.",
    "a coloured drawing of a {}.",
    "the {}.",
    "a {}.",
    "this is a {}.",
    "a photo of the {}.",
    "{}",
)
TEXT_BATCH = 256
TEXT_RATE = 1.5e-3
CLASS_SHARE = 0.008
AUGMENTED_VIEWS = 1  # beside the plain one, of every emoji picture


class Captions:
    """Captions of the pretraining pictures: names and tags, and rarely the name of a class."""

    def __init__(self, corpus: Corpus, class_share: float):
        self.class_share = class_share
        label_of = {subgroup: name for name, subgroups in CLASSES for subgroup in subgroups}
        self.names = [item.name for item in corpus.emoji_list]
        self.tags = [[tag for tag in item.tags if len(tag) > 1] for item in corpus.emoji_list]
        self.classes = [label_of.get(item.subgroup) for item in corpus.emoji_list]
        self.icon_names = corpus.names

    def draw(self, emoji: int, row: int, random_: random.Random) -> tuple[str, str]:
        """(what the caption says, caption) for one picture. Captions of one class say the class."""
        if emoji < 0:
            said = self.icon_names[row]
        elif self.classes[emoji] is not None and random_.random() < self.class_share:
            said = self.classes[emoji]
            return f"class {said}", random_.choice(TEMPLATES).format(said)
        else:
            tags = self.tags[emoji]
            said = random_.choice(tags) if tags and random_.random() < 0.35 else self.names[emoji]
        return f"emoji {emoji}" if emoji >= 0 else f"icon {said}", random_.choice(TEMPLATES).format(said)

    def all_texts(self) -> list[str]:
        """Every text that a caption can be made of; its tokens are the ones that are trained."""
        tags = [tag for held in self.tags for tag in held]
        return [*TEMPLATES, *self.names, *tags, *(name for name, _ in CLASSES), *self.icon_names]


def load_image_tower(work: Path, name: str, raw: bool) -> tuple[torch.nn.Module, dict]:
    """The image tower of stage 1 in evaluation mode, averaged or (raw) as last trained, and its checkpoint."""
    state = torch.load(work / name / "image.pt", weights_only=True)
    if raw:
        state["average"] = state["visual"]
    model = new_clip(TINY_CFG)
    model.visual.load_state_dict(state["average"])
    return model.visual.to(memory_format=torch.channels_last).eval(), state


def text_features(
    visual: torch.nn.Module, state: dict, raw: bool, corpus: Corpus, labels: Labels, work: Path, name: str
) -> dict:
    """Features of the pictures that captions are written for; kept beside the checkpoint they belong to."""
    path = work / name / "features.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if (kept["step"], kept.get("raw")) == (state["step"], raw):
            return kept
    size = TINY_CFG["vision_cfg"]["image_size"]
    (emoji_rows, matched_rows, icon_rows), _ = sampler(corpus, labels)
    generator = torch.Generator().manual_seed(1)
    icon_rows = icon_rows[torch.randperm(len(icon_rows), generator=generator)[: len(emoji_rows)]]
    rows = torch.cat([emoji_rows, matched_rows, icon_rows])
    features = [encode(visual, corpus.images[rows.numpy()], size)]
    for _ in range(AUGMENTED_VIEWS):
        for start in range(0, len(emoji_rows), 256):
            part = emoji_rows[start : start + 256]
            pictures = augment(torch.from_numpy(corpus.images[part.numpy()]), size, labels.flip[part], generator)
            with torch.no_grad(), autocast():
                features.append(F.normalize(visual(normalize(pictures)).float(), dim=-1))
        rows = torch.cat([rows, emoji_rows])
    kept = {"step": state["step"], "raw": raw, "rows": rows, "features": torch.cat(features)}
    save_atomic(kept, path)
    return kept


class CompactText(torch.nn.Module):
    """open_clip's text tower with an embedding table of the used tokens only, on captions cut after their last token.

    The tower is causal and pools at the end token, so cutting changes nothing; the small table saves time.
    """

    def __init__(self, model: torch.nn.Module, texts: list[str]):
        super().__init__()
        self.model = model
        self.tokenizer = SimpleTokenizer()
        used = {self.tokenizer.sot_token_id, self.tokenizer.eot_token_id}
        self.encoded: dict[str, list[int]] = {}
        for text in texts:
            text = text.replace("{}", "")
            used.update(self.tokenizer.encode(text))
            used.update(self.tokenizer.encode(text + "."))  # a full stop can melt into one token with a sign before it
        self.used = sorted(used)
        self.position = {token: index for index, token in enumerate(self.used)}
        self.table = torch.nn.Parameter(0.02 * torch.randn(len(self.used), TEXT_CFG["width"]))

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Unit-length features (B, D) of B captions."""
        rows = []
        for text in texts:
            if text not in self.encoded:
                tokens = self.tokenizer.encode(text)[: TEXT_CFG["context_length"] - 2]
                tokens = [self.tokenizer.sot_token_id, *tokens, self.tokenizer.eot_token_id]
                self.encoded[text] = [self.position[token] for token in tokens]
            rows.append(self.encoded[text])
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        ends = torch.tensor([len(row) - 1 for row in rows])
        model = self.model
        x = F.embedding(ids, self.table) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        return F.normalize((x[torch.arange(len(rows)), ends] @ model.text_projection).float(), dim=-1)

    @torch.no_grad()
    def write_table(self) -> None:
        """Puts the trained rows into the model's full table, zeros elsewhere."""
        self.model.token_embedding.weight.zero_()
        self.model.token_embedding.weight[self.used] = self.table


def write_model(folder: Path, config: dict, model: torch.nn.Module) -> None:
    """Writes open_clip's own format: `open_clip_config.json` and half-precision `open_clip_model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": list(MEAN), "std": list(STD), "interpolation": "bilinear", "resize_mode": "shortest"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n", encoding="utf-8")
    state = {
        key: (value.half() if value.dtype.is_floating_point else value).contiguous()
        for key, value in model.state_dict().items()
    }
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError("a weight does not fit half precision")
    temporary = folder / "open_clip_model.tmp"
    save_file(state, temporary)
    temporary.chmod(0o644)  # safetensors makes it private to its owner
    os.replace(temporary, folder / "open_clip_model.safetensors")


def train_text(work: Path, minutes: float, seed: int, name: str, raw: bool, class_share: float, target: Path) -> None:
    """Stage 2. Contrastive: caption ↔ picture with several positives, and caption → mean picture of each emoji."""
    corpus = load_corpus(work)
    labels = Labels(corpus)
    visual, state = load_image_tower(work, name, raw)
    started = time.time()
    kept = text_features(visual, state, raw, corpus, labels, work, name)
    print(f"features of {len(kept['rows'])} pictures, {time.time() - started:.0f} s", flush=True)
    rows, features = kept["rows"], kept["features"]
    emoji = labels.emoji[rows]
    torch.manual_seed(seed)
    random_ = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new_clip(TINY_CFG)
    model.visual.load_state_dict(state["average"])
    captions = Captions(corpus, class_share)
    tower = CompactText(model, captions.all_texts())
    known = sorted(set(emoji[emoji >= 0].tolist()))
    prototypes = torch.stack([F.normalize(features[emoji == index].mean(0), dim=0) for index in known])
    of_prototype = {index: i for i, index in enumerate(known)}
    members: dict[str, torch.Tensor] = {f"emoji {index}": torch.tensor([i]) for i, index in enumerate(known)}
    for class_name, _ in CLASSES:
        held = [of_prototype[index] for index in known if captions.classes[index] == class_name]
        members[f"class {class_name}"] = torch.tensor(held)
    parameters = [p for key, p in tower.named_parameters() if "visual" not in key and "token_embedding" not in key]
    decayed, plain_ = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain_, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=TEXT_RATE, betas=(0.9, 0.98), fused=True)
    weight = torch.where(emoji >= 0, torch.where(labels.in_classes[rows], 1.0, 0.6), 0.35)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(50))
    path = work / name / "text.pt"
    step, used = 0, 0.0
    if path.exists():
        resumed = torch.load(path, weights_only=True)
        if [resumed.get(key) for key in ("image_step", "raw", "class_share", "seed")] == [
            state["step"],
            raw,
            class_share,
            seed,
        ]:
            tower.load_state_dict(resumed["tower"], strict=False)
            optimizer.load_state_dict(resumed["optimizer"])
            generator.set_state(resumed["generator"])
            step, used = resumed["step"], resumed["seconds"]
            print(f"going on at step {step}", flush=True)

    def checkpoint() -> None:
        held = {
            key: value
            for key, value in tower.state_dict().items()
            if "visual" not in key and "token_embedding" not in key
        }
        save_atomic(
            {
                "tower": held,
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "step": step,
                "seconds": used,
                "image_step": state["step"],
                "class_share": class_share,
                "raw": raw,
                "seed": seed,
            },
            path,
        )

    budget, last_save = Budget(used), time.time()
    while used < 60 * minutes:
        progress = used / (60 * minutes)
        rate = TEXT_RATE * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = torch.multinomial(weight, TEXT_BATCH, generator=generator)
        drawn = [captions.draw(int(emoji[i]), int(rows[i]), random_) for i in picked]
        said = [what for what, _ in drawn]
        with autocast():
            texts = tower([caption for _, caption in drawn])
        pictures = F.normalize(features[picked] + 0.02 * torch.randn(len(picked), EMBED_DIM), dim=-1)
        scale = model.logit_scale.exp()
        # a picture is right for a caption that says its emoji, its icon name or its class
        own = [f"emoji {int(emoji[i])}" if emoji[i] >= 0 else what for i, what in zip(picked, said, strict=True)]
        of_class = [f"class {captions.classes[int(emoji[i])]}" if emoji[i] >= 0 else "" for i in picked]
        right = torch.tensor(
            [[what in (mine, group) for mine, group in zip(own, of_class, strict=True)] for what in said],
            dtype=torch.float,
        )
        logits = scale * texts @ pictures.T
        loss = F.cross_entropy(logits, right / right.sum(1, keepdim=True))
        loss = loss + F.cross_entropy(logits.T, right.T / right.T.sum(1, keepdim=True).clamp(min=1e-6))
        named = [i for i, what in enumerate(said) if what in members]
        banked = torch.zeros(len(named), len(known))
        for i, position in enumerate(named):
            held = members[said[position]]
            banked[i, held] = 1 / len(held)
        loss = 0.5 * loss + F.cross_entropy(scale * texts[named] @ prototypes.T, banked, label_smoothing=0.02)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(math.log(50), math.log(100))
        step, used = step + 1, budget.tick()
        if step % 50 == 0:
            print(f"step {step} min {used / 60:.1f} loss {loss.item():.3f} scale {scale.item():.1f}", flush=True)
        if time.time() - last_save > 60:
            checkpoint()
            last_save = time.time()
    checkpoint()
    tower.write_table()
    write_model(target, TINY_CFG, model)
    print(f"done: {step} steps, {len(tower.used)} tokens; wrote {target}", flush=True)


# ---------------------------------------------------------------------------------------------------------------- a ViT

DISTILL_VIEWS = 10_000  # augmented pictures with the teacher's features, drawn once and used many times
DISTILL_RATE = 1e-3
DROPPED_PATCHES = ((0.6, 0.5), (1.0, 0.0))  # part of the budget → share of patches the student does not see


def distill_views(
    work: Path, name: str, raw: bool, corpus: Corpus, labels: Labels, count: int
) -> dict[str, torch.Tensor]:
    """Augmented pictures for the student, what the teacher makes of them, and their labels; kept in the work folder."""
    path = work / name / "views.pt"
    visual, state = load_image_tower(work, name, raw)
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if (kept["step"], kept.get("raw")) == (state["step"], raw) and len(kept["rows"]) >= count:
            return kept
    rows, weights = sampler(corpus, labels)
    generator = torch.Generator().manual_seed(2)
    counts = [round(256 * share) for share in KIND_SHARES.values()]
    size = TINY_CFG["vision_cfg"]["image_size"]
    parts: dict[str, list[torch.Tensor]] = {"rows": [], "pictures": [], "features": []}
    while sum(map(len, parts["rows"])) < count:
        picked = torch.cat(
            [r[torch.multinomial(w, n, generator=generator)] for r, w, n in zip(rows, weights, counts, strict=True)]
        )
        large = augment(torch.from_numpy(corpus.images[picked.numpy()]), size, labels.flip[picked], generator)
        with torch.no_grad(), autocast():
            parts["features"].append(F.normalize(visual(normalize(large)).float(), dim=-1))
        small = F.interpolate(large, size=(src.SIZE, src.SIZE), mode="bilinear", antialias=True)
        parts["pictures"].append((small * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous())
        parts["rows"].append(picked)
    kept = {key: torch.cat(value) for key, value in parts.items()} | {"step": state["step"], "raw": raw}
    save_atomic(kept, path)
    return kept


def train_vit(
    work: Path, minutes: float, seed: int, name: str, raw: bool, tiny: Path, target: Path, start: Path | None = None
) -> None:
    """Stage 3. The student learns the teacher's features and what the classifiers of stage 1 say of them.

    ``start`` is the folder of a finished ViT that the first sitting begins from.
    """
    corpus = load_corpus(work)
    labels = Labels(corpus)
    state = torch.load(work / name / "image.pt", weights_only=True)
    started = time.time()
    views = distill_views(work, name, raw, corpus, labels, DISTILL_VIEWS)
    print(f"{len(views['rows'])} views, {time.time() - started:.0f} s", flush=True)
    heads = Heads(len(corpus.emoji_list), len(labels.group_names), len(labels.vocabulary))
    heads.load_state_dict(state["heads"])
    heads.requires_grad_(False)
    torch.manual_seed(seed)
    model = new_clip(TINY_VIT_CFG)
    visual = model.visual
    if start is not None:
        visual.load_state_dict(finished_image_tower(start))
    matrices = [p for p in visual.parameters() if p.ndim > 1]
    others = [p for p in visual.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=DISTILL_RATE, betas=(0.9, 0.98), fused=True)
    generator = torch.Generator().manual_seed(seed)
    path = work / name / "vit.pt"
    step, used = 0, 0.0
    if path.exists():
        resumed = torch.load(path, weights_only=True)
        if [resumed.get(key) for key in ("image_step", "raw", "seed")] == [state["step"], raw, seed]:
            visual.load_state_dict(resumed["visual"])
            optimizer.load_state_dict(resumed["optimizer"])
            generator.set_state(resumed["generator"])
            step, used = resumed["step"], resumed["seconds"]
            print(f"going on at step {step}", flush=True)

    def checkpoint() -> None:
        held = {"visual": visual.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
        save_atomic(held | {"step": step, "seconds": used, "image_step": state["step"], "raw": raw, "seed": seed}, path)

    budget, last_save = Budget(used), time.time()
    visual.train()
    while used < 60 * minutes:
        progress = used / (60 * minutes)
        dropped = next(share for until, share in DROPPED_PATCHES if progress < until or until == 1.0)
        visual.patch_dropout = open_clip.transformer.PatchDropout(dropped) if dropped else torch.nn.Identity()
        rate = DISTILL_RATE * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = torch.randint(len(views["rows"]), (BATCH,), generator=generator)
        teacher = views["features"][picked]
        with autocast():
            student = visual(plain(views["pictures"][picked], src.SIZE))
        student = F.normalize(student.float(), dim=-1)
        loss = 4 * (1 - (student * teacher).sum(1)).mean()
        for ours, theirs in zip(heads(student)[:2], heads(teacher)[:2], strict=True):
            loss = loss + F.kl_div(F.log_softmax(ours, 1), F.softmax(theirs, 1), reduction="batchmean")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        optimizer.step()
        step, used = step + 1, budget.tick()
        if step % 100 == 0:
            cosine = (student * teacher).sum(1).mean().item()
            print(f"step {step} min {used / 60:.1f} loss {loss.item():.3f} cosine {cosine:.3f}", flush=True)
        if time.time() - last_save > 60:
            checkpoint()
            last_save = time.time()
    checkpoint()
    visual.patch_dropout = torch.nn.Identity()
    shared = load_file(tiny / "open_clip_model.safetensors")
    text = {key: value.float() for key, value in shared.items() if not key.startswith("visual.")}
    missing, unexpected = model.load_state_dict(text, strict=False)
    if unexpected or any(not key.startswith("visual.") for key in missing):
        raise ValueError(f"the text tower of {tiny} is not the one that tiny_vit shares")
    write_model(target, TINY_VIT_CFG, model)
    print(f"done: {step} steps of {BATCH}; wrote {target}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("image", "text", "distill"))
    parser.add_argument("--minutes", type=float, required=True, help="time budget of the stage, over all its sittings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--name", default="tiny", help="folder for checkpoints inside the work folder (default %(default)s)"
    )
    parser.add_argument(
        "--class-share", type=float, default=CLASS_SHARE, help="captions that name a class (default %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, help="image stage: one picture size for this sitting instead of growing ones"
    )
    parser.add_argument(
        "--rate", type=float, default=LEARNING_RATE, help="image stage: peak rate (default %(default)s)"
    )
    parser.add_argument("--start", type=Path, help="image, distill: folder of a finished model to begin from")
    parser.add_argument(
        "--raw", action="store_true", help="text, distill: the image tower's last weights, not their average"
    )
    parser.add_argument("--to", type=Path, help="folder of the model (default: fedpgp/assets/tiny or tiny_vit)")
    parser.add_argument("--work", type=Path, default=src.DEFAULT_WORK, help="work folder (default %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "image":
        train_image(
            arguments.work,
            arguments.minutes,
            arguments.seed,
            arguments.name,
            arguments.size,
            arguments.rate,
            arguments.start,
        )
    elif arguments.stage == "text":
        target = arguments.to or ASSETS / "tiny"
        train_text(
            arguments.work,
            arguments.minutes,
            arguments.seed,
            arguments.name,
            arguments.raw,
            arguments.class_share,
            target,
        )
    else:
        target = arguments.to or ASSETS / "tiny_vit"
        train_vit(
            arguments.work,
            arguments.minutes,
            arguments.seed,
            arguments.name,
            arguments.raw,
            ASSETS / "tiny",
            target,
            arguments.start,
        )


if __name__ == "__main__":
    main()
