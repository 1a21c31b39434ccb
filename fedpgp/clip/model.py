"""A frozen open_clip model: encode images, encode texts, the logit scale, preprocessing.

Everything that learns in this project lives outside the model. What is wrapped here never changes,
so it is put in evaluation mode without gradients, and identified by a fingerprint of its weights
(the key of every cache). Torch alone: open_clip is imported by what loads a model
(:mod:`fedpgp.clip.loading`), or where one of its parts is needed.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fedpgp.clip.preprocess import Preprocess
from fedpgp.clip.tokens import TokenReader
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError, unknown
from fedpgp.process import set_up_process

Cached = TypeVar("Cached")


class FrozenCLIP:
    """An open_clip ``CLIP`` or ``CustomTextCLIP`` whose weights never change.

    Args:
        model: the open_clip model; put in evaluation mode, gradients off.
        tokenizer: texts and ``context_length`` -> token ids (n, context_length), as
            open_clip's; None is CLIP's own.
        preprocess: PIL image -> (3, R, R) tensor; None is OpenAI's evaluation transform
            at the model's image size.

    Attributes:
        token_embedding: the text tower's token table; its output is what a context takes the place
            of.
        context_length: tokens that the text tower reads.

    Raises:
        FedPGPError: a text tower without a token table.
    """

    def __init__(
        self, model, tokenizer: Callable | None = None, preprocess: Callable | None = None
    ):
        set_up_process()
        self.model = model.eval().requires_grad_(False)
        self.text_model = getattr(model, "text", model)
        self.token_embedding = _token_embedding(self.text_model)
        if tokenizer is None:
            tokenizer = import_open_clip().SimpleTokenizer()
        self.tokenizer = tokenizer
        self.context_length = int(self.text_model.context_length)
        if hasattr(
            self.text_model, "config"
        ):  # of Hugging Face: what it could read; open_clip's tokenizer cuts before
            self.context_length = int(
                getattr(tokenizer, "context_length", None) or self.context_length
            )
        self._preprocess = preprocess
        self.model.visual.to(memory_format=torch.channels_last)

    def cached(self, key: str, compute: Callable[[], Cached]) -> Cached:
        """Return something of the model that never changes: computed here;
        :mod:`fedpgp.clip.disk_cache` keeps it on disk.

        Args:
            key: what it is.
            compute: gives a tensor, a dictionary of tensors, or what JSON can hold.
        """
        return compute()

    @cached_property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> (3, R, R) tensor, as the model was trained to see it
        (evaluation transform)."""
        if self._preprocess is not None:
            return Preprocess(self._preprocess)
        size = self.model.visual.image_size
        return Preprocess(import_open_clip().image_transform(size, is_train=False))

    @property
    def image_size(self) -> int:
        """Side R of the images that the image tower takes, in pixels."""
        size = self.model.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding.weight.dtype

    @property
    def width(self) -> int:
        """Width d of the text tower: the length of one context vector."""
        return int(self.token_embedding.weight.shape[1])

    @property
    def embed(self) -> int:
        """Length e of an image or text feature."""
        return self.encode_texts(["a photo"]).shape[1]

    @property
    def logit_scale(self) -> float:
        """``exp(logit_scale)``: what a cosine is multiplied with to give a logit (about 100
        for OpenAI's models)."""
        return float(self.model.logit_scale.detach().cpu().double().exp())

    @property
    def text_blocks(self) -> int:
        """Number of blocks of the text tower."""

        def count() -> int:
            tower = self.text_model.transformer
            return (
                len(tower.resblocks)
                if hasattr(tower, "resblocks")
                else int(tower.config.num_hidden_layers)
            )

        return self.cached("text blocks", count)

    @property
    def preprocessing(self) -> str:
        """What :attr:`preprocess` does, in words that change whenever it does."""
        # Functions among the transforms show their address, which differs from process to process.
        return self.cached(
            "preprocessing", lambda: re.sub(r" at 0x[0-9a-f]+", "", repr(self.preprocess))
        )

    @cached_property
    def reader(self) -> TokenReader:
        """What reads the tokenizer."""
        return TokenReader(self.tokenizer)

    @property
    def special_tokens(self) -> list[int]:
        """Ids of the tokens that stand around a sentence: of CLIP's tokenizer the
        start and the end token."""
        return self.cached("special tokens", lambda: self.reader.special(self.context_length))

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text without start, end and padding."""
        return self.cached(f"token ids {text}", lambda: self.reader.words(text))

    @torch.no_grad()
    def embed_tokens(self, ids: Sequence[int]) -> Tensor:
        """What the token table gives: n ids -> (n, d)."""

        def look_up() -> Tensor:
            return self.token_embedding(torch.tensor(ids, device=self.device)).detach()

        return self.cached(f"token rows {list(ids)}", look_up).clone()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the architecture (activations too, which no weight shows) and of every
        weight."""
        digest = hashlib.sha256(repr(self.model).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
        return digest.hexdigest()

    def features_of(self, what: str, images: Tensor) -> Tensor:
        """``features``, ``patches``, ``mirrored`` (features of the mirrored images) or
        ``features_raw`` (as they leave the image tower): (B, 3, R, R) preprocessed pixels -> (B,
        e) or (B, patches, e)."""
        if what == "mirrored":
            return self.encode_images(images.flip(-1))
        if what == "features_raw":
            return self.encode_images(images, unit=False)
        return {"features": self.encode_images, "patches": self.encode_patches}[what](images)

    @torch.no_grad()
    def encode_images(self, images: Tensor, unit: bool = True) -> Tensor:
        """Image features: (B, 3, R, R) preprocessed pixels -> (B, e), float32
        (float64 for a float64 model).

        Args:
            unit: of unit norm; False leaves them as long as the image tower makes them.
        """
        images = images.to(
            self.device, self.dtype, memory_format=torch.channels_last
        )  # convolutions are faster so
        features = self.model.encode_image(images)
        features = features if features.dtype == torch.float64 else features.float()
        return F.normalize(features, dim=-1) if unit else features

    @torch.no_grad()
    def encode_patches(self, images: Tensor) -> Tensor:
        """Unit-norm patch features in the joint space: (B, 3, R, R) preprocessed
        pixels -> (B, patches, e).

        Every token of the image tower goes through what makes the pooled feature of the
        class token (ViT), of the mean token (ResNet's attention pool) or of the mean (a
        pooled convolutional tower).

        Raises:
            FedPGPError: a tower whose pooled feature is made otherwise.
        """
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        return F.normalize(self._patches(self.model.visual, images), dim=-1)

    def _patches(self, tower: nn.Module, images: Tensor) -> Tensor:
        if getattr(tower, "pool_type", None) == "tok" and tower.attn_pool is None:
            tokens = tower.ln_post(tower.transformer(tower._embeds(images)))
            return tokens[:, 1:] @ tower.proj
        if hasattr(tower, "attnpool"):
            found = []
            hook = tower.attnpool.register_forward_pre_hook(
                lambda module, inputs: found.append(inputs[0])
            )
            try:
                tower(images)
            finally:
                hook.remove()
            return _attention_pool(tower.attnpool, found[0])[:, 1:]
        head = list(getattr(tower, "head", ()))
        if [type(layer) for layer in head] == [nn.Dropout, nn.Linear]:
            grid = tower.trunk.forward_features(images)
            if grid.dim() == 4 and torch.allclose(
                tower.trunk(images), grid.mean((2, 3)), atol=1e-4
            ):
                return head[1](grid.flatten(2).transpose(1, 2))
        raise FedPGPError(
            f"the image tower {type(tower).__name__} does not say which features its patches "
            "have; methods that transport patches to prompts need a CLIP ViT (class token), a "
            "CLIP ResNet or a mean-pooled tower"
        )

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features of whole sentences, by the model's own forward: n strings -> (n,
        e)."""

        return self.cached(
            f"text features {list(texts)}", lambda: F.normalize(self._texts(texts), dim=-1)
        )

    @torch.no_grad()
    def encode_ensemble(self, templates: Sequence[str], names: Sequence[str]) -> Tensor:
        """One text feature a name: the mean over templates of the features as the text tower makes
        them, then unit norm; templates with one ``{}``, n names -> (n, e)."""

        def encode() -> Tensor:
            total = sum(
                self._texts([template.format(name) for name in names]) for template in templates
            )
            return F.normalize(total, dim=-1)

        return self.cached(f"text ensemble {list(templates)} {list(names)}", encode)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), context_length=self.context_length).to(self.device)
        return torch.cat([self.model.encode_text(chunk) for chunk in tokens.split(256)])

    @torch.no_grad()
    def embed_phrase(self, phrase: str) -> Tensor:
        """Token embeddings of a phrase, without start and end tokens: (tokens, d).

        Raises:
            FedPGPError: the phrase has no token.
        """
        ids = self.token_ids(phrase)
        if not ids:
            raise FedPGPError(
                f"context_init={phrase!r} has no token; give a phrase such as 'a photo of a', or "
                "'normal'"
            )
        return self.embed_tokens(ids)


def _attention_pool(pool: nn.Module, grid: Tensor) -> Tensor:
    """ResNet's attention pool with every token as a query: (B, width, h, w) -> (B, 1 + hw, e),
    the mean token first."""
    tokens = grid.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + pool.positional_embedding
    q, k, v = (
        layer(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    return pool.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _token_embedding(text: nn.Module) -> nn.Module:
    """The token table of a text tower: open_clip's own, or of a Hugging Face model in its
    wrapper."""
    if hasattr(text, "token_embedding"):
        return text.token_embedding
    find = getattr(getattr(text, "transformer", None), "get_input_embeddings", None)
    if find is None:
        raise FedPGPError(
            f"the text tower {type(text).__name__} has no token embedding that could be prompted"
        )
    return find()


def resolve_device(device: str) -> torch.device:
    """``auto|cpu|cuda|cuda:1|mps`` -> a torch device that exists here.

    Raises:
        FedPGPError: no such device on this machine.
    """
    if device == "auto":
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise FedPGPError(unknown("device", device, ["auto", "cpu", "cuda", "mps"]))
    if (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    ):
        raise FedPGPError(
            f"device={device} is asked for, but torch sees none on this machine; use device=auto "
            "or device=cpu"
        )
    return torch.device(device)
