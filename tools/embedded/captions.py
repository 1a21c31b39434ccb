"""Captions of the pretraining images, and the text tower that learns from them."""

import random

import torch
import torch.nn.functional as F

from fedpgp.clip.torchvision_fix import import_open_clip
from tools.embedded.build_data import CLASSES
from tools.embedded.corpus import Corpus
from tools.embedded.models import TEXT_CFG

SimpleTokenizer = import_open_clip().tokenizer.SimpleTokenizer

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


class Captions:
    """Captions of the pretraining images: names and tags, and rarely the name of a class."""

    def __init__(self, corpus: Corpus, class_fraction: float):
        self.class_fraction = class_fraction
        label_of = {subgroup: name for name, subgroups in CLASSES for subgroup in subgroups}
        self.names = [item.name for item in corpus.emoji_list]
        self.tags = [[tag for tag in item.tags if len(tag) > 1] for item in corpus.emoji_list]
        self.classes = [label_of.get(item.subgroup) for item in corpus.emoji_list]
        self.icon_names = corpus.names

    def draw(self, emoji: int, row: int, random_: random.Random) -> tuple[str, str]:
        """(what the caption says, caption) for one image. Captions of one class say the class."""
        if emoji < 0:
            said = self.icon_names[row]
        elif self.classes[emoji] is not None and random_.random() < self.class_fraction:
            said = self.classes[emoji]
            return f"class {said}", random_.choice(TEMPLATES).format(said)
        else:
            tags = self.tags[emoji]
            said = random_.choice(tags) if tags and random_.random() < 0.35 else self.names[emoji]
        return f"emoji {emoji}" if emoji >= 0 else f"icon {said}", random_.choice(TEMPLATES).format(
            said
        )

    def all_texts(self) -> list[str]:
        """Every text that a caption can be made of; its tokens are the ones that are trained."""
        tags = [tag for held in self.tags for tag in held]
        return [*TEMPLATES, *self.names, *tags, *(name for name, _ in CLASSES), *self.icon_names]


class CompactText(torch.nn.Module):
    """open_clip's text tower with an embedding table of the used tokens only, on captions
    cut after their last token.

    The tower is causal and pools at the end token, so cutting changes nothing; the small table
    saves time.
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
            used.update(
                self.tokenizer.encode(text + ".")
            )  # a full stop can melt into one token with a sign before it
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
        return F.normalize(
            (x[torch.arange(len(rows)), ends] @ model.text_projection).float(), dim=-1
        )

    @torch.no_grad()
    def write_table(self) -> None:
        """Puts the trained rows into the model's full table, zeros elsewhere."""
        self.model.token_embedding.weight.zero_()
        self.model.token_embedding.weight[self.used] = self.table
