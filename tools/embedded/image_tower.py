"""Stage 1: the image tower of ``tiny``, from labels, not captions."""

import math
import time
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tools.embedded.corpus import Corpus, load_corpus
from tools.embedded.images import augment, autocast, normalize
from tools.embedded.labels import KIND_FRACTIONS, WATCHED, Heads, Labels, sampler
from tools.embedded.models import TINY_CFG, encode, finished_image_tower, new_clip
from tools.embedded.sessions import Budget, save_atomic

# Part of the time budget → side to which the 64-pixel images are scaled. A convolutional net may
# learn on small images first, which is several times as fast, but has to end, at a rate that
# still moves it, on the size that the model's configuration names: 128 pixels, 4x4 positions.
# `--size` holds the size for a session instead.
RESOLUTIONS = ((0.45, 64), (0.65, 80), (0.75, 96), (1.0, 128))
BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARM_UP = 300  # steps
EMA_DECAY = 0.999


def _stem_forward(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
    images = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    height, width = (images.shape[1] - 1) // 2, (images.shape[2] - 1) // 2
    patches = [
        images[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)
    ]
    weight = self.weight.permute(0, 2, 3, 1).reshape(self.weight.shape[0], -1)
    return F.linear(torch.cat(patches, -1), weight).permute(0, 3, 1, 2)


def speed_up_stem(visual: torch.nn.Module) -> None:
    """The first 3x3 stride-2 convolution as a matrix product: the same numbers.

    The processor's convolution kernels need a third of a whole training step for the weight
    gradient of this one layer.
    """
    conv = visual.trunk.stem.conv
    conv.forward = types.MethodType(_stem_forward, conv)


@torch.no_grad()
def watch(
    visual: torch.nn.Module, heads: Heads, corpus: Corpus, labels: Labels, size: int
) -> dict[str, float]:
    """Group and emoji accuracy (percent) on the watched style; for monitoring only."""
    rows = np.flatnonzero(
        (corpus.source == corpus.source_list.index(WATCHED)) & labels.in_classes.numpy()
    )
    features = encode(visual, corpus.images[rows], size)
    emoji, group, _ = heads(features)
    return {
        "watched_group": 100 * (group.argmax(1) == labels.group[rows]).float().mean().item(),
        "watched_emoji": 100 * (emoji.argmax(1) == labels.emoji[rows]).float().mean().item(),
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
    """Stage 1. The learning rate follows the used part of the time budget, however fast the machine
    is.

    ``start`` is the folder of a finished model whose image tower the first session begins from.
    """
    corpus = load_corpus(work)
    labels = Labels(corpus)
    rows, weights = sampler(corpus, labels)
    print(
        f"images: {[len(r) for r in rows]}; groups {len(labels.group_names)}; words "
        f"{len(labels.vocabulary)}",
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
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ],
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
        step, used, seen = state["step"], state["seconds"], state["images"]
        print(f"resumed at step {step}, {used / 60:.1f} minutes used", flush=True)

    def checkpoint() -> None:
        state = {
            "visual": visual.state_dict(),
            "heads": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "generator": generator.get_state(),
            "step": step,
            "seconds": used,
            "images": seen,
            "seed": seed,
        }
        save_atomic(state, path)

    counts = [round(BATCH * fraction) for fraction in KIND_FRACTIONS.values()]
    log = {"loss": 0.0, "emoji": 0.0, "group": 0.0, "words": 0.0}
    logged, log_step, last_save = time.time(), step, time.time()
    budget = Budget(used)
    visual.train()
    while used < 60 * minutes:
        progress = used / (60 * minutes)
        size = fixed_size or next(
            side for until, side in RESOLUTIONS if progress < until or until == 1.0
        )
        rate = (
            peak_rate * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = torch.cat(
            [
                r[torch.multinomial(w, n, generator=generator)]
                for r, w, n in zip(rows, weights, counts, strict=True)
            ]
        )
        images = augment(
            torch.from_numpy(corpus.images[picked.numpy()]), size, labels.flip[picked], generator
        )
        with autocast():
            features = visual(normalize(images))
        logits = heads(F.normalize(features.float(), dim=-1))
        known = labels.emoji[picked] >= 0
        emoji_loss = F.cross_entropy(
            logits[0][known], labels.emoji[picked][known], label_smoothing=0.05
        )
        group_loss = F.cross_entropy(
            logits[1][known], labels.group[picked][known], label_smoothing=0.05
        )
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
                f"step {step} min {used / 60:.1f} size {size} lr {rate:.2e} {per_step} "
                f"{rate_now:.0f} images/s",
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
                    {
                        key: round(value, 1)
                        for key, value in watch(averaged, heads, corpus, labels, size).items()
                    },
                    flush=True,
                )
    checkpoint()
    print(f"done: {step} steps, {seen} images, {used / 60:.1f} minutes", flush=True)
