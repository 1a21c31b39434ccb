"""Stage 3: a ViT that the image tower of ``tiny`` teaches."""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fedpgp.clip.torchvision_fix import import_open_clip
from tools.embedded import sources as src
from tools.embedded.corpus import Corpus, load_corpus
from tools.embedded.image_tower import BATCH
from tools.embedded.images import augment, autocast, normalize, plain
from tools.embedded.labels import KIND_FRACTIONS, Heads, Labels, sampler
from tools.embedded.models import (
    TINY_CFG,
    TINY_VIT_CFG,
    finished_image_tower,
    load_image_tower,
    new_clip,
    write_model,
)
from tools.embedded.sessions import Budget, save_atomic

open_clip = import_open_clip()

DISTILL_VIEWS = (
    10_000  # augmented images with the teacher's features, drawn once and used many times
)
DISTILL_RATE = 1e-3
DROPPED_PATCHES = (
    (0.6, 0.5),
    (1.0, 0.0),
)  # part of the budget → fraction of patches the student does not see


def distill_views(
    work: Path, name: str, raw: bool, corpus: Corpus, labels: Labels, count: int
) -> dict[str, torch.Tensor]:
    """Augmented images for the student, what the teacher makes of them, and their labels;
    kept in the work folder."""
    path = work / name / "views.pt"
    visual, state = load_image_tower(work, name, raw)
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if (kept["step"], kept.get("raw")) == (state["step"], raw) and len(kept["rows"]) >= count:
            return kept
    rows, weights = sampler(corpus, labels)
    generator = torch.Generator().manual_seed(2)
    counts = [round(256 * fraction) for fraction in KIND_FRACTIONS.values()]
    size = TINY_CFG["vision_cfg"]["image_size"]
    parts: dict[str, list[torch.Tensor]] = {"rows": [], "images": [], "features": []}
    while sum(map(len, parts["rows"])) < count:
        picked = torch.cat(
            [
                r[torch.multinomial(w, n, generator=generator)]
                for r, w, n in zip(rows, weights, counts, strict=True)
            ]
        )
        large = augment(
            torch.from_numpy(corpus.images[picked.numpy()]), size, labels.flip[picked], generator
        )
        with torch.no_grad(), autocast():
            parts["features"].append(F.normalize(visual(normalize(large)).float(), dim=-1))
        small = F.interpolate(large, size=(src.SIZE, src.SIZE), mode="bilinear", antialias=True)
        parts["images"].append(
            (small * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        )
        parts["rows"].append(picked)
    kept = {key: torch.cat(value) for key, value in parts.items()} | {
        "step": state["step"],
        "raw": raw,
    }
    save_atomic(kept, path)
    return kept


def train_vit(
    work: Path,
    minutes: float,
    seed: int,
    name: str,
    raw: bool,
    tiny: Path,
    target: Path,
    start: Path | None = None,
) -> None:
    """Stage 3. The student learns the teacher's features and what the classifiers of stage 1 say of
    them.

    ``start`` is the folder of a finished ViT that the first session begins from.
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
        if [resumed.get(key) for key in ("image_step", "raw", "seed")] == [
            state["step"],
            raw,
            seed,
        ]:
            visual.load_state_dict(resumed["visual"])
            optimizer.load_state_dict(resumed["optimizer"])
            generator.set_state(resumed["generator"])
            step, used = resumed["step"], resumed["seconds"]
            print(f"resumed at step {step}", flush=True)

    def checkpoint() -> None:
        held = {
            "visual": visual.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
        }
        save_atomic(
            held
            | {
                "step": step,
                "seconds": used,
                "image_step": state["step"],
                "raw": raw,
                "seed": seed,
            },
            path,
        )

    budget, last_save = Budget(used), time.time()
    visual.train()
    while used < 60 * minutes:
        progress = used / (60 * minutes)
        dropped = next(
            fraction for until, fraction in DROPPED_PATCHES if progress < until or until == 1.0
        )
        visual.patch_dropout = (
            open_clip.transformer.PatchDropout(dropped) if dropped else torch.nn.Identity()
        )
        rate = (
            DISTILL_RATE * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * progress))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = torch.randint(len(views["rows"]), (BATCH,), generator=generator)
        teacher = views["features"][picked]
        with autocast():
            student = visual(plain(views["images"][picked], src.SIZE))
        student = F.normalize(student.float(), dim=-1)
        loss = 4 * (1 - (student * teacher).sum(1)).mean()
        for ours, theirs in zip(heads(student)[:2], heads(teacher)[:2], strict=True):
            loss = loss + F.kl_div(
                F.log_softmax(ours, 1), F.softmax(theirs, 1), reduction="batchmean"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        optimizer.step()
        step, used = step + 1, budget.tick()
        if step % 100 == 0:
            cosine = (student * teacher).sum(1).mean().item()
            print(
                f"step {step} min {used / 60:.1f} loss {loss.item():.3f} cosine {cosine:.3f}",
                flush=True,
            )
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
