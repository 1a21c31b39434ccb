"""A frozen open_clip model: encode images, encode texts, the logit scale, preprocessing.

Everything that learns in this project lives outside the model. What is loaded here never changes, so it is put in
evaluation mode without gradients, and identified by a fingerprint of its weights (the key of every cache).
"""

import hashlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import fedpgp._torchvision  # noqa: F401  (before open_clip)
from fedpgp.assets_path import asset
from fedpgp.errors import FedPGPError, unknown

log = logging.getLogger(__name__)

SHIPPED = ("tiny", "tiny_vit")
"""Models whose weights come with the package (experiments/embedded)."""

MODELS = {
    "vit_b16": ("ViT-B-16-quickgelu", "openai"),
    "vit_b32": ("ViT-B-32-quickgelu", "openai"),
    "vit_l14": ("ViT-L-14-quickgelu", "openai"),
    "rn50": ("RN50-quickgelu", "openai"),
    "vit_b16_laion": ("ViT-B-16", "laion2b_s34b_b88k"),
    "vit_b32_laion": ("ViT-B-32", "laion2b_s34b_b79k"),
    "vit_l14_laion": ("ViT-L-14", "laion2b_s32b_b82k"),
    "vit_b16_dfn": ("ViT-B-16-quickgelu", "dfn2b"),
    "vit_l14_dfn": ("ViT-L-14-quickgelu", "dfn2b"),
}
"""Short names (the same as conf/model/) -> open_clip architecture and pretrained tag."""


class FrozenCLIP:
    """An open_clip ``CLIP`` or ``CustomTextCLIP`` whose weights never change.

    Args:
        model: the open_clip model; put in evaluation mode, gradients off.
        tokenizer: texts -> token ids (n, context_length); None is CLIP's own at the model's context length.
        preprocess: PIL image -> (3, R, R) tensor; None is OpenAI's evaluation transform at the model's image size.
    """

    def __init__(self, model, tokenizer: Callable | None = None, preprocess: Callable | None = None):
        self.model = model.eval().requires_grad_(False)
        self.text_model = getattr(model, "text", model)
        if not hasattr(self.text_model, "token_embedding"):
            raise FedPGPError(
                f"the text tower {type(self.text_model).__name__} has no token embedding that could be prompted"
            )
        self.context_length = int(self.text_model.context_length)
        if tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer

            tokenizer = SimpleTokenizer(context_length=self.context_length)
        self.tokenizer = tokenizer
        self._preprocess = preprocess
        self.model.visual.to(memory_format=torch.channels_last)

    @cached_property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> (3, R, R) tensor, as the model was trained to see it (evaluation transform)."""
        if self._preprocess is not None:
            return self._preprocess
        from open_clip import image_transform

        return image_transform(self.model.visual.image_size, is_train=False)

    @property
    def image_size(self) -> int:
        """Side R of the pictures that the image tower takes, in pixels."""
        size = self.model.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text_model.token_embedding.weight.dtype

    @property
    def width(self) -> int:
        """Width d of the text tower: the length of one context vector."""
        return int(self.text_model.token_embedding.weight.shape[1])

    @property
    def logit_scale(self) -> float:
        """``exp(logit_scale)``: what a cosine is multiplied with to give a logit (about 100 for OpenAI's models)."""
        return float(self.model.logit_scale.detach().cpu().double().exp())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the architecture (activations too, which no weight shows) and of every weight."""
        digest = hashlib.sha256(repr(self.model).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Unit-norm image features: (B, 3, R, R) preprocessed pixels -> (B, e), float32 (float64 for a float64
        model)."""
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)  # convolutions are faster so
        features = self.model.encode_image(images)
        return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)

    @torch.no_grad()
    def encode_patches(self, images: Tensor) -> Tensor:
        """Unit-norm patch features in the joint space: (B, 3, R, R) preprocessed pixels -> (B, patches, e).

        Every token of the image tower goes through what makes the pooled feature of the class token (ViT), of the mean
        token (ResNet's attention pool) or of the mean (a pooled convolutional tower).

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
            hook = tower.attnpool.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
            try:
                tower(images)
            finally:
                hook.remove()
            return _attention_pool(tower.attnpool, found[0])[:, 1:]
        head = list(getattr(tower, "head", ()))
        if [type(layer) for layer in head] == [nn.Dropout, nn.Linear]:
            grid = tower.trunk.forward_features(images)
            if grid.dim() == 4 and torch.allclose(tower.trunk(images), grid.mean((2, 3)), atol=1e-4):
                return head[1](grid.flatten(2).transpose(1, 2))
        raise FedPGPError(
            f"the image tower {type(tower).__name__} does not say which features its patches have; methods that "
            "transport patches to prompts need a CLIP ViT (class token), a CLIP ResNet or a mean-pooled tower"
        )

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features of whole sentences, by the model's own forward: n strings -> (n, e)."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        features = [self.model.encode_text(chunk) for chunk in tokens.split(256)]
        return F.normalize(torch.cat(features), dim=-1)

    @torch.no_grad()
    def embed_phrase(self, phrase: str) -> Tensor:
        """Token embeddings of a phrase, without start and end tokens: (tokens, d).

        Raises:
            FedPGPError: the phrase has no token.
        """
        ids = word_ids(self.tokenizer, phrase)
        if not ids:
            raise FedPGPError(
                f"context_init={phrase!r} has no token; give a phrase such as 'a photo of a', or 'normal'"
            )
        return self.text_model.token_embedding.weight[torch.tensor(ids, device=self.device)].detach().clone()


def _attention_pool(pool: nn.Module, grid: Tensor) -> Tensor:
    """ResNet's attention pool with every token as a query: (B, width, h, w) -> (B, 1 + hw, e), the mean token first."""
    tokens = grid.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + pool.positional_embedding
    q, k, v = (
        layer(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    return pool.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def word_ids(tokenizer: Callable, text: str) -> list[int]:
    """Token ids without start, end and padding: of CLIP's tokenizer, or the Hugging Face one in open_clip's wrapper."""
    if hasattr(tokenizer, "encode"):
        return tokenizer.encode(text)
    return tokenizer.tokenizer.encode(text, add_special_tokens=False)


def resolve_device(device: str) -> torch.device:
    """``auto|cpu|cuda|cuda:1|mps`` -> a torch device that exists here.

    Raises:
        FedPGPError: no such device on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise FedPGPError(unknown("device", device, ["auto", "cpu", "cuda", "mps"]))
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise FedPGPError(
            f"device={device} is asked for, but torch sees none on this machine; use device=auto or device=cpu"
        )
    return torch.device(device)


def load_clip(name: str, pretrained: str | None = None, device: str | torch.device = "cpu") -> FrozenCLIP:
    """Loads an open_clip model and freezes it.

    Args:
        name: ``tiny``, ``tiny_vit`` (shipped), a short name of :data:`MODELS`, an open_clip architecture
            (``ViT-B-16-quickgelu``), or open_clip's ``local-dir:FOLDER`` / ``hf-hub:ORG/NAME``.
        pretrained: an open_clip tag, a weights file, ``"random"`` (benchmarks: warns), or None for the weights that
            belong to the name.
        device: where the weights go.

    Raises:
        FedPGPError: unknown name or tag; weights that cannot be had (says what to download and where to put it); a
            truncated weights file; an activation (GELU or QuickGELU) other than the one the weights were trained with.
    """
    import open_clip

    architecture, tag = _resolve(name, pretrained)
    transform = {}
    if pretrained == "random":
        warnings.warn(
            f"model {name}: RANDOM weights, every accuracy will be at chance (pretrained=random)", stacklevel=2
        )
        tag = None
    elif not architecture.startswith(("local-dir:", "hf-hub:")):
        transform = _check_weights(name, architecture, tag)
    try:
        # A model folder names its own tokenizer; a plain CLIP one has none and gets CLIP's.
        tokenizer = open_clip.get_tokenizer(architecture)
    except (ImportError, OSError, ValueError) as error:
        raise FedPGPError(
            f"model {name}: its tokenizer cannot be had ({_first_line(error)}); it is a Hugging Face one: "
            "pip install transformers, and have its files in the Hugging Face cache"
        ) from error
    try:
        with warnings.catch_warnings():
            # An activation mismatch costs accuracy silently; open_clip only warns of it.
            warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
            model, _, preprocess = open_clip.create_model_and_transforms(
                architecture, pretrained=tag, device=device, load_weights=pretrained != "random", **transform
            )
    except UserWarning as mismatch:
        raise FedPGPError(
            f"model {name}: {mismatch}. Choose {_other_activation(architecture)} for these weights"
        ) from None
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        raise FedPGPError(_cannot_load(name, architecture, tag, error)) from error
    except Exception as error:
        if "safetensor" in type(error).__name__.lower():  # SafetensorError derives from Exception alone
            raise FedPGPError(_cannot_load(name, architecture, tag, error)) from error
        raise
    return FrozenCLIP(model.float(), tokenizer, preprocess)


def _resolve(name: str, pretrained: str | None) -> tuple[str, str | None]:
    import open_clip

    if name in SHIPPED:
        folder = asset(name, "open_clip_model.safetensors").parent
        if pretrained not in (None, "random"):
            raise FedPGPError(f"model {name} comes with its own weights; leave model.pretrained unset (or 'random')")
        return f"local-dir:{folder}", None
    if name in MODELS:
        architecture, tag = MODELS[name]
        return architecture, _expanded(pretrained) or tag
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        for pattern in (
            "open_clip_config.json",
            "*.safetensors",
        ):  # without weights open_clip would go on with random ones
            if not list(folder.glob(pattern)) and pretrained != "random":
                raise FedPGPError(
                    f"model {name}: there is no {pattern} in {folder}; save a model there in open_clip's format"
                )
        return f"local-dir:{folder}", None
    if name.startswith("hf-hub:"):
        return name, None
    if name not in open_clip.list_models():
        raise FedPGPError(unknown("model", name, [*SHIPPED, *MODELS, *open_clip.list_models()]))
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise FedPGPError(f"model {name} needs model.pretrained: one of its tags ({tags}), a weights file, or 'random'")
    return name, _expanded(pretrained)


def _expanded(pretrained: str | None) -> str | None:
    return str(Path(pretrained).expanduser()) if pretrained and pretrained.startswith("~") else pretrained


def _check_weights(name: str, architecture: str, tag: str) -> dict:
    """Refuses an unknown tag, a missing file, and the activation mismatches that open_clip does not check.

    Returns:
        how pictures are transformed, where open_clip would not know: a file has no tag, so a short name's own is taken.
    """
    import open_clip

    if Path(tag).suffix or "/" in tag:
        if not Path(tag).is_file():
            raise FedPGPError(
                f"model {name}: weights file {tag} does not exist; give the path of an open_clip checkpoint"
            )
        activation = "QuickGELU" if (open_clip.get_model_config(architecture) or {}).get("quick_gelu") else "GELU"
        warnings.warn(
            f"model {name}: a weights file does not say its activation; {architecture} takes {activation}. If these "
            "weights were trained with the other one (OpenAI's with QuickGELU, LAION's with GELU), use "
            f"{_other_activation(architecture)}",
            stacklevel=3,
        )
        config = open_clip.get_pretrained_cfg(architecture, MODELS[name][1]) or {} if name in MODELS else {}
        kinds = {"image_mean": "mean", "image_std": "std", "image_interpolation": "interpolation"}
        return {option: config[key] for option, key in kinds.items() if key in config}
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag.lower().replace("-", "_") not in tags:
        other = _other_activation(architecture)
        if tag in open_clip.list_pretrained_tags_by_model(other):
            raise FedPGPError(
                f"the weights {tag!r} were trained with the activation of {other}: use model.name={other}"
            )
        raise FedPGPError(unknown(f"weights for {architecture}", tag, tags))
    config = open_clip.get_pretrained_cfg(architecture, tag) or {}
    model_config = open_clip.get_model_config(architecture) or {}
    if bool(config.get("quick_gelu", False)) != bool(model_config.get("quick_gelu", False)):
        raise FedPGPError(
            f"the weights {tag!r} were trained with {'QuickGELU' if config.get('quick_gelu') else 'GELU'}, "
            f"{architecture} has the other activation: use model.name={_other_activation(architecture)}"
        )
    return {}


def _other_activation(architecture: str) -> str:
    suffix = "-quickgelu"
    return architecture.removesuffix(suffix) if architecture.endswith(suffix) else architecture + suffix


def _cannot_load(name: str, architecture: str, tag: str | None, error: Exception) -> str:
    import open_clip

    if architecture.startswith("local-dir:"):
        folder = architecture.removeprefix("local-dir:")
        return (
            f"model {name}: the weights in {folder} cannot be read ({_first_line(error)}); restore that folder's files"
        )
    if tag and Path(tag).expanduser().is_file():
        return (
            f"model {name}: {tag} cannot be loaded into {architecture} ({_first_line(error)}); it may be truncated, of "
            "another architecture, or a TorchScript archive (save its state_dict first)"
        )
    config = open_clip.get_pretrained_cfg(architecture, tag) or {}
    hub = str(config.get("hf_hub") or "").rstrip("/")
    source = (
        f"https://huggingface.co/{hub} (open_clip_model.safetensors)"
        if hub
        else config.get("url") or "open_clip's list"
    )
    return (
        f"model {name}: the weights {tag!r} are not on this machine and cannot be downloaded ({_first_line(error)}). "
        f"Download them from {source} and pass the file: model={name} model.pretrained=FILE "
        "(or put them in the Hugging Face cache)"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
