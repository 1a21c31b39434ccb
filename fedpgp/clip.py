"""Loading an open_clip model by name, with every mistake that can be made told in a line."""

import pickle
import warnings
import zipfile
from pathlib import Path

import torch

import fedpgp._torchvision  # noqa: F401  (before open_clip)
from fedpgp.assets_path import SHIPPED, asset
from fedpgp.errors import FedPGPError, unknown
from fedpgp.frozen import FrozenCLIP, resolve_device

__all__ = ["MODELS", "SHIPPED", "FrozenCLIP", "load_clip", "resolve_device"]


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

    architecture, tag = resolve_name(name, pretrained)
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
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights are the same in every worker
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


def resolve_name(name: str, pretrained: str | None) -> tuple[str, str | None]:
    """What open_clip calls a model of this project: (architecture or ``local-dir:FOLDER``, tag or file).

    Raises:
        FedPGPError: an unknown name, or no weights for it.
    """
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
