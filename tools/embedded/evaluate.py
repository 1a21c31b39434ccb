"""Zero-shot and linear-probe accuracy of a model on the embedded federation, per domain: the
table of the model cards.

    python -m tools.embedded.evaluate fedpgp/assets/tiny               # test emoji: for the cards
    python -m tools.embedded.evaluate fedpgp/assets/tiny --on train    # train emoji in three folds

Zero-shot: "a photo of a {}." with the names of all classes. Linear probe: multinomial logistic
regression on the unit-length image features of all six domains, its L2 weight chosen on a fifth of
the training emoji; pooled = all test images together. The three folds of `--on train` and the
fifth are cut by emoji, as train and test are, so no emoji is on both sides.
"""

import argparse
import csv
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from fedpgp.clip import load_clip
from tools.embedded.build_data import ASSETS, DOMAINS

TEMPLATE = "a photo of a {}."
L2_WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4)


@dataclass
class EncodedImages:
    """Features (N, D) of unit length, with label, domain index, train/test side and
    emoji of each image."""

    features: torch.Tensor
    labels: torch.Tensor
    domains: torch.Tensor
    is_train: torch.Tensor
    emoji: list[str]


def read_classes() -> list[str]:
    """Class names in label order."""
    with (ASSETS / "classes.csv").open(newline="", encoding="utf-8") as file:
        return [row["class"] for row in csv.DictReader(file)]


@torch.no_grad()
def encode_federation(model: torch.nn.Module, preprocess) -> EncodedImages:
    """Encodes every image of the federation with the model's own preprocessing."""
    names = read_classes()
    with (ASSETS / "emoji.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["codepoints"]: row for row in csv.DictReader(file)}
    features, labels, domains, is_train, emoji = [], [], [], [], []
    for index, domain in enumerate(DOMAINS):
        batch = []
        with zipfile.ZipFile(ASSETS / f"{domain}.zip") as archive:
            for member in sorted(archive.namelist()):
                codepoints = member.rsplit(".", 1)[0]
                batch.append(preprocess(Image.open(io.BytesIO(archive.read(member)))))
                labels.append(names.index(rows[codepoints]["class"]))
                domains.append(index)
                is_train.append(rows[codepoints]["split"] == "train")
                emoji.append(codepoints)
        for part in torch.stack(batch).split(128):
            features.append(model.encode_image(part, normalize=True))
    tensors = (torch.tensor(values) for values in (labels, domains, is_train))
    return EncodedImages(torch.cat(features), *tensors, emoji)


@torch.no_grad()
def zero_shot_logits(model: torch.nn.Module, tokenizer, images: EncodedImages) -> torch.Tensor:
    """(N, classes) logits of the template with every class name."""
    texts = model.encode_text(
        tokenizer([TEMPLATE.format(name) for name in read_classes()]), normalize=True
    )
    return model.logit_scale.exp() * images.features @ texts.T


def fit_probe(
    features: torch.Tensor, labels: torch.Tensor, classes: int, l2: float
) -> torch.nn.Linear:
    """Logistic regression by L-BFGS from zero; `l2` weighs the mean square of the weights'
    sum in the mean loss."""
    probe = torch.nn.Linear(features.shape[1], classes)
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(
        probe.parameters(), max_iter=100, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(features), labels) + 0.5 * l2 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe


def _hash_part(emoji: list[str], parts: int, salt: str) -> torch.Tensor:
    return torch.tensor(
        [int(hashlib.sha256(f"{salt}:{c}".encode()).hexdigest(), 16) % parts for c in emoji]
    )


def probe_right(
    images: EncodedImages, train: torch.Tensor, test: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Whether the probe is right on each test image, and the L2 weight it chose.
    train, test: masks (N,)."""
    classes = len(read_classes())
    fold = _hash_part(images.emoji, 5, "validation")
    fit, check = train & (fold != 0), train & (fold == 0)
    accuracy = {}
    for l2 in L2_WEIGHTS:
        with torch.enable_grad():
            probe = fit_probe(images.features[fit], images.labels[fit], classes, l2)
        accuracy[l2] = (
            (probe(images.features[check]).argmax(1) == images.labels[check]).float().mean().item()
        )
    best = max(accuracy, key=accuracy.get)
    probe = fit_probe(images.features[train], images.labels[train], classes, best)
    return probe(images.features[test]).argmax(1) == images.labels[test], best


def evaluate(folder: Path, on: str) -> dict[str, dict[str, float]]:
    """Rows "zero-shot" and "linear probe" → domain or "pooled" → accuracy in percent."""
    clip = load_clip(f"local-dir:{folder.resolve()}")
    images = encode_federation(clip.model, clip.preprocess)
    zero_shot = zero_shot_logits(clip.model, clip.tokenizer, images).argmax(1) == images.labels
    if on == "test":
        chosen = ~images.is_train
        probe, l2 = probe_right(images, images.is_train, chosen)
        print(f"linear probe: L2 weight {l2:g}")
    else:
        chosen = images.is_train
        probe = torch.zeros(len(chosen), dtype=torch.bool)
        third = _hash_part(images.emoji, 3, "fold")
        for fold in range(3):
            held = chosen & (third == fold)
            probe[held], _ = probe_right(images, chosen & (third != fold), held)
        probe = probe[chosen]
    domains = images.domains[chosen]
    table = {}
    for name, right in (("zero-shot", zero_shot[chosen]), ("linear probe", probe)):
        row = {"pooled": 100 * right.float().mean().item()}
        row |= {
            domain: 100 * right[domains == i].float().mean().item()
            for i, domain in enumerate(DOMAINS)
        }
        table[name] = row
    return table


def markdown(table: dict[str, dict[str, float]]) -> str:
    """The table as the cards print it."""
    columns = ["pooled", *DOMAINS]
    lines = ["| % | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    lines += [
        f"| {name} | " + " | ".join(f"{row[column]:.1f}" for column in columns) + " |"
        for name, row in table.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder",
        type=Path,
        help="folder with open_clip_config.json and open_clip_model.safetensors",
    )
    parser.add_argument("--on", choices=("test", "train"), default="test")
    parser.add_argument(
        "--threads", type=int, default=2, help="fewer where other work runs (default %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(markdown(evaluate(arguments.folder, arguments.on)))


if __name__ == "__main__":
    main()
