"""Stage 3: a ViT on the first blocks of ``tiny``, which teaches it the rest of its image tower."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip import FrozenCLIP, load_clip
from fedpgp.clip.conv_stem import put_stem
from tools.embedded.captions import Captions
from tools.embedded.corpus import Corpus, load_corpus
from tools.embedded.images import augment, autocast, normalize, plain
from tools.embedded.labels import KIND_FRACTIONS, WATCHED, Labels, sampler
from tools.embedded.models import (
    CONV_STEM,
    TINY_VIT_CFG,
    new_clip,
    write_model,
)
from tools.embedded.sessions import Budget, save_atomic

VIEWS = 48_000  # pictures that the teacher sees, drawn once and used many times
DRAWN = 256  # at a time
PLAIN = 64  # of these: not augmented
BATCH = 128
RATE = 5e-3
WATCHED_EVERY = 2  # of the watched style's pictures


@dataclass
class Views:
    """Pictures as the stem's and the teacher's last layer see them, (N, channels, 4, 4), float16:
    what the student reads, and what its features are learned from."""

    maps: Tensor
    grids: Tensor


class Teacher:
    """The image tower of ``tiny``, cut behind the stem's last block."""

    def __init__(self, clip: FrozenCLIP, stem: nn.Module):
        visual = clip.model.visual
        self.stem, self.head = stem, visual.head.proj.weight
        self.size = clip.image_size
        blocks = list(visual.trunk.s4.children())[1:]  # the stem ends in the first one
        self.rest = nn.Sequential(*blocks, visual.trunk.final_conv)

    @torch.no_grad()
    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized (B, 3, R, R) -> maps and grids of :class:`Views`."""
        with autocast():
            maps = self.stem(pixels)
            return maps.float().half(), self.rest(maps).float().half()

    def features(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        """Grids -> features of the images (B, D) and of their patches (B, patches, D), unit
        norm."""
        patches = torch.einsum("bchw,dc->bhwd", grids.float(), self.head).flatten(1, 2)
        return F.normalize(patches.mean(1), dim=-1), F.normalize(patches, dim=-1)


def draw_views(folder: Path, teacher: Teacher, corpus: Corpus, labels: Labels, count: int) -> Views:
    """Pictures of the corpus, three quarters of them augmented, without the watched style; kept in
    a folder."""
    if not (folder / "grids.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"maps": [], "grids": []}
        rows, weights = sampler(corpus, labels)
        generator = torch.Generator().manual_seed(2)
        counts = [round(DRAWN * fraction) for fraction in KIND_FRACTIONS.values()]
        for _ in range(math.ceil(count / DRAWN)):
            picked = torch.cat(
                [
                    r[torch.multinomial(w, n, generator=generator)]
                    for r, w, n in zip(rows, weights, counts, strict=True)
                ]
            )
            picked = picked[torch.randperm(len(picked), generator=generator)]
            images = torch.from_numpy(corpus.images[picked.numpy()])
            flip = labels.flip[picked[PLAIN:]]
            drawn = normalize(augment(images[PLAIN:], teacher.size, flip, generator))
            pixels = torch.cat([plain(images[:PLAIN], teacher.size), drawn])
            seen = teacher.see(pixels.contiguous(memory_format=torch.channels_last))
            for held, part in zip(parts.values(), seen, strict=True):
                held.append(part.numpy())
        for name, held in parts.items():
            np.save(folder / f"{name}.npy", np.concatenate(held)[:count])
    maps, grids = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("maps", "grids"))
    return Views(maps, grids)


def name_bank(clip: FrozenCLIP, corpus: Corpus) -> Tensor:
    """Text features of all emoji names in the corpus, (names, D)."""
    names = sorted(set(Captions(corpus, 0).names))
    return clip.encode_texts([f"a photo of a {name}." for name in names])


@torch.no_grad()
def start_linear(visual: nn.Module, projection: nn.Module, views: Views, teacher: Teacher) -> None:
    """Lets the tokens begin as the best linear guess at the teacher's patch features: ridge
    regression of these on the maps, cut to the tokens' width, is what the projections of the stem
    and of the tower make; the blocks learn the rest."""
    picked = torch.randperm(len(views.maps))[:3000]
    x = views.maps[picked].float().permute(0, 2, 3, 1).flatten(0, 2)
    y = teacher.features(views.grids[picked])[1].flatten(0, 1)
    gram = x.T @ x / len(x)
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    guess = torch.linalg.solve(gram, x.T @ y / len(x))
    fitted = x @ guess
    axes = torch.linalg.svd(fitted.T @ fitted).U[:, : projection.out_channels]
    weight = guess @ axes
    projection.weight.copy_((weight / (x @ weight).std()).T[:, :, None, None])
    visual.proj.copy_(axes.T)
    visual.positional_embedding.mul_(0.3)


def optimizers(visual: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for the rest."""
    blocks = [p for p in visual.transformer.parameters() if p.ndim == 2]
    inside = {id(p) for p in blocks}
    others = [p for p in visual.parameters() if p.requires_grad and id(p) not in inside]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True),
        torch.optim.Muon(blocks, lr=RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]


def train_vit(work: Path, minutes: float, seed: int, name: str, tiny: Path, target: Path) -> None:
    """Stage 3. The student learns the teacher's feature of the image, those of its patches, and
    what the teacher says of all emoji names."""
    corpus, clip = load_corpus(work), load_clip(f"local-dir:{tiny.resolve()}")
    torch.manual_seed(seed)
    model = new_clip(TINY_VIT_CFG)
    put_stem(model, CONV_STEM)
    visual, stem = model.visual, model.visual.conv1
    stem.network.load_state_dict(
        {key: clip.model.visual.trunk.state_dict()[key] for key in stem.network.state_dict()}
    )
    stem.network.requires_grad_(False)
    teacher = Teacher(clip, stem.network.eval())
    started = time.time()
    views = draw_views(work / name / "views", teacher, corpus, Labels(corpus), VIEWS)
    print(f"{len(views.maps)} views, {time.time() - started:.0f} s", flush=True)
    watched = np.flatnonzero(corpus.source == corpus.source_list.index(WATCHED))[::WATCHED_EVERY]
    held_out = Views(*teacher.see(plain(torch.from_numpy(corpus.images[watched]), teacher.size)))
    bank, scale = name_bank(clip, corpus), clip.logit_scale
    start_linear(visual, stem.projection, views, teacher)
    visual.conv1, visual.output_tokens = stem.projection, True  # it reads the maps

    def compared(seen: Views) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines to the teacher's features, of images and of patches, and the divergence from what
        it says of the names."""
        wanted, wanted_patches = teacher.features(seen.grids)
        with autocast():
            feature, patches = visual(seen.maps.float())
            patches = patches @ visual.proj
        feature = F.normalize(feature.float(), dim=-1)
        patches = F.normalize(patches.float(), dim=-1)
        said, right = (F.log_softmax(scale * x @ bank.T, 1) for x in (feature, wanted))
        divergence = F.kl_div(said, right, log_target=True, reduction="batchmean")
        return (
            (feature * wanted).sum(1).mean(),
            (patches * wanted_patches).sum(-1).mean(),
            divergence,
        )

    optimizing = optimizers(visual)
    generator = torch.Generator().manual_seed(seed)
    path, step, used, order = work / name / "vit.pt", 0, 0.0, torch.empty(0, dtype=torch.int64)
    if path.exists():
        resumed = torch.load(path, weights_only=True)
        if resumed["seed"] == seed:
            visual.load_state_dict(resumed["visual"])
            for optimizer, state in zip(optimizing, resumed["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            generator.set_state(resumed["generator"])
            step, used = resumed["step"], resumed["seconds"]
            print(f"resumed at step {step}", flush=True)

    def checkpoint() -> None:
        held = {"visual": visual.state_dict(), "generator": generator.get_state()}
        held |= {"optimizers": [optimizer.state_dict() for optimizer in optimizing]}
        save_atomic(held | {"step": step, "seconds": used, "seed": seed}, path)

    budget, last_save = Budget(used), time.time()
    visual.train()
    while used < 60 * minutes:
        progress = used / (60 * minutes)
        part = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in (group for optimizer in optimizing for group in optimizer.param_groups):
            group["lr"] = RATE * part
        if not len(order):
            order = torch.randperm(len(views.maps), generator=generator)
        picked, order = order[:BATCH], order[BATCH:]
        cosine, of_patches, divergence = compared(Views(views.maps[picked], views.grids[picked]))
        loss = 4 * (1 - cosine) + 2 * (1 - of_patches) + divergence
        visual.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        for optimizer in optimizing:
            optimizer.step()
        step, used = step + 1, budget.tick()
        if step % 200 == 0:
            visual.eval()
            with torch.no_grad():
                watching = ", ".join(f"{value.item():.3f}" for value in compared(held_out))
            visual.train()
            print(
                f"step {step} min {used / 60:.1f} loss {loss.item():.3f} cosine "
                f"{cosine.item():.3f}; watched style: {watching}",
                flush=True,
            )
        if time.time() - last_save > 60:
            checkpoint()
            last_save = time.time()
    checkpoint()
    stem.projection = visual.conv1
    visual.conv1, visual.output_tokens = stem, False
    _share_text(model, clip)
    write_model(target, TINY_VIT_CFG, model, CONV_STEM)
    print(f"done: {step} steps of {BATCH}; wrote {target}", flush=True)


def _share_text(model: nn.Module, clip: FrozenCLIP) -> None:
    """The text tower of ``tiny``, bit for bit."""
    state = {k: v for k, v in clip.model.state_dict().items() if not k.startswith("visual.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not key.startswith("visual.") for key in missing):
        raise ValueError("the text tower of tiny is not the one that tiny_vit shares")
