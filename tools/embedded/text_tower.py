"""Stage 2: the text tower of ``tiny`` on the frozen image tower."""

import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from tools.embedded.build_data import CLASSES
from tools.embedded.captions import Captions, CompactText
from tools.embedded.corpus import Corpus, load_corpus
from tools.embedded.images import augment, autocast, normalize
from tools.embedded.labels import Labels, sampler
from tools.embedded.models import (
    EMBED_DIM,
    TINY_CFG,
    encode,
    load_image_tower,
    new_clip,
    write_model,
)
from tools.embedded.sessions import Budget, save_atomic

TEXT_BATCH = 256
TEXT_RATE = 1.5e-3
CLASS_FRACTION = 0.008
AUGMENTED_VIEWS = 1  # beside the plain one, of every emoji image


def text_features(
    visual: torch.nn.Module,
    state: dict,
    raw: bool,
    corpus: Corpus,
    labels: Labels,
    work: Path,
    name: str,
) -> dict:
    """Features of the images that captions are written for; kept beside the
    checkpoint they belong to."""
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
            images = augment(
                torch.from_numpy(corpus.images[part.numpy()]), size, labels.flip[part], generator
            )
            with torch.no_grad(), autocast():
                features.append(F.normalize(visual(normalize(images)).float(), dim=-1))
        rows = torch.cat([rows, emoji_rows])
    kept = {"step": state["step"], "raw": raw, "rows": rows, "features": torch.cat(features)}
    save_atomic(kept, path)
    return kept


def train_text(
    work: Path, minutes: float, seed: int, name: str, raw: bool, class_fraction: float, target: Path
) -> None:
    """Stage 2. Contrastive: caption ↔ image with several positives, and caption → mean
    image of each emoji."""
    corpus = load_corpus(work)
    labels = Labels(corpus)
    visual, state = load_image_tower(work, name, raw)
    started = time.time()
    kept = text_features(visual, state, raw, corpus, labels, work, name)
    print(f"features of {len(kept['rows'])} images, {time.time() - started:.0f} s", flush=True)
    rows, features = kept["rows"], kept["features"]
    emoji = labels.emoji[rows]
    torch.manual_seed(seed)
    random_ = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new_clip(TINY_CFG)
    model.visual.load_state_dict(state["average"])
    captions = Captions(corpus, class_fraction)
    tower = CompactText(model, captions.all_texts())
    known = sorted(set(emoji[emoji >= 0].tolist()))
    prototypes = torch.stack(
        [F.normalize(features[emoji == index].mean(0), dim=0) for index in known]
    )
    of_prototype = {index: i for i, index in enumerate(known)}
    members: dict[str, torch.Tensor] = {
        f"emoji {index}": torch.tensor([i]) for i, index in enumerate(known)
    }
    for class_name, _ in CLASSES:
        held = [of_prototype[index] for index in known if captions.classes[index] == class_name]
        members[f"class {class_name}"] = torch.tensor(held)
    parameters = [
        p
        for key, p in tower.named_parameters()
        if "visual" not in key and "token_embedding" not in key
    ]
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
        if [resumed.get(key) for key in ("image_step", "raw", "class_fraction", "seed")] == [
            state["step"],
            raw,
            class_fraction,
            seed,
        ]:
            tower.load_state_dict(resumed["tower"], strict=False)
            optimizer.load_state_dict(resumed["optimizer"])
            generator.set_state(resumed["generator"])
            step, used = resumed["step"], resumed["seconds"]
            print(f"resumed at step {step}", flush=True)

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
                "class_fraction": class_fraction,
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
        images = F.normalize(features[picked] + 0.02 * torch.randn(len(picked), EMBED_DIM), dim=-1)
        scale = model.logit_scale.exp()
        # an image is right for a caption that says its emoji, its icon name or its class
        own = [
            f"emoji {int(emoji[i])}" if emoji[i] >= 0 else what
            for i, what in zip(picked, said, strict=True)
        ]
        of_class = [
            f"class {captions.classes[int(emoji[i])]}" if emoji[i] >= 0 else "" for i in picked
        ]
        right = torch.tensor(
            [
                [what in (mine, group) for mine, group in zip(own, of_class, strict=True)]
                for what in said
            ],
            dtype=torch.float,
        )
        logits = scale * texts @ images.T
        loss = F.cross_entropy(logits, right / right.sum(1, keepdim=True))
        loss = loss + F.cross_entropy(
            logits.T, right.T / right.T.sum(1, keepdim=True).clamp(min=1e-6)
        )
        named = [i for i, what in enumerate(said) if what in members]
        banked = torch.zeros(len(named), len(known))
        for i, position in enumerate(named):
            held = members[said[position]]
            banked[i, held] = 1 / len(held)
        loss = 0.5 * loss + F.cross_entropy(
            scale * texts[named] @ prototypes.T, banked, label_smoothing=0.02
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(math.log(50), math.log(100))
        step, used = step + 1, budget.tick()
        if step % 50 == 0:
            print(
                f"step {step} min {used / 60:.1f} loss {loss.item():.3f} scale {scale.item():.1f}",
                flush=True,
            )
        if time.time() - last_save > 60:
            checkpoint()
            last_save = time.time()
    checkpoint()
    tower.write_table()
    write_model(target, TINY_CFG, model)
    print(f"done: {step} steps, {len(tower.used)} tokens; wrote {target}", flush=True)
