"""Loading an open_clip model by name, with every mistake that can be made told in a line."""

import contextlib
import json
import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fedpgp.archives import check_members
from fedpgp.assets_path import SHIPPED, asset
from fedpgp.clip.conv_stem import put_stem, read_stem
from fedpgp.clip.model import FrozenCLIP
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.clip.weights import (
    IN_A_FOLDER,
    check_file,
    check_tag,
    find_weights,
    first_line,
    is_archive,
    is_file,
    load_archive,
    why_not,
)
from fedpgp.errors import FedPGPError, unknown

_SIZES = {"context_length", "vocab_size", "width", "heads", "layers"}
"""All that open_clip's configuration of a text tower has when it is CLIP's own."""

SHORT_NAMES = {
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


def load_clip(
    name: str, pretrained: str | None = None, device: str | torch.device = "cpu"
) -> FrozenCLIP:
    """Loads an open_clip model and freezes it.

    Args:
        name: ``tiny``, ``tiny_vit`` (shipped), a short name of :data:`SHORT_NAMES`, an
            open_clip architecture (``ViT-B-16-quickgelu``), or open_clip's
            ``local-dir:FOLDER`` / ``hf-hub:ORG/NAME``.
        pretrained: an open_clip tag, a weights file (open_clip's, or OpenAI's archive),
            ``"random"`` (benchmarks: warns), or None for the weights that belong to the name.
        device: where the weights go.

    Raises:
        FedPGPError: unknown name or tag; weights or a tokenizer that cannot be had (says what to
            download and where to put it); a weights file that is truncated, of another layout or
            another architecture; an activation (GELU or QuickGELU) other than the one the
            weights were trained with.
    """
    architecture, tag = resolve_name(name, pretrained)
    transform, archive = {}, None
    if pretrained == "random":
        warnings.warn(
            f"model {name}: RANDOM weights, every accuracy will be at chance (pretrained=random)",
            stacklevel=2,
        )
        tag = None
    elif is_file(tag):
        check_file(name, architecture, Path(tag))
        transform = _transform(name, architecture)
        archive = Path(tag) if is_archive(Path(tag)) else None
    elif architecture.startswith("local-dir:"):
        if found := find_weights(Path(architecture.removeprefix("local-dir:"))):
            check_members(found)
    elif tag is not None:
        check_tag(architecture, tag)
    tokenizer = _tokenizer(name, architecture)
    stem = None
    if architecture.startswith("local-dir:"):
        stem = read_stem(Path(architecture.removeprefix("local-dir:")))
    make = partial(_make, stem, architecture, device=device, **transform)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # random weights are the same in every worker
            warnings.filterwarnings(
                "ignore", message=".*QuickGELU mismatch.*"
            )  # refused above, where it is one
            if pretrained == "random" or archive:
                model, preprocess = make(load_weights=False)
            else:
                model, preprocess = make(pretrained=tag, require_pretrained=True)
            if archive:
                load_archive(model, archive)
    except (
        RuntimeError,
        OSError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,  # of open_clip, for sizes of another architecture
    ) as error:
        raise FedPGPError(_cannot_load(name, architecture, tag, error, make)) from error
    except Exception as error:
        if (
            "safetensor" in type(error).__name__.lower()
        ):  # SafetensorError derives from Exception alone
            raise FedPGPError(_cannot_load(name, architecture, tag, error, make)) from error
        raise
    return FrozenCLIP(model.float(), tokenizer, preprocess)


def resolve_name(name: str, pretrained: str | None) -> tuple[str, str | None]:
    """What open_clip calls a model of this project: (architecture or
    ``local-dir:FOLDER``, tag or file).

    Raises:
        FedPGPError: an unknown name, no weights for it, or others than its own.
    """
    open_clip = import_open_clip()

    if name in SHIPPED:
        folder = asset(name, "open_clip_model.safetensors").parent
        if pretrained not in (None, "random"):
            raise FedPGPError(
                f"model {name} comes with its own weights; leave model.pretrained unset (or "
                "'random')"
            )
        return f"local-dir:{folder}", None
    if name in SHORT_NAMES:
        architecture, tag = SHORT_NAMES[name]
        return architecture, _expanded(pretrained) or tag
    if name.startswith(("local-dir:", "hf-hub:")) and is_file(pretrained):
        raise FedPGPError(
            f"model {name} has the weights that lie there, and {pretrained} would not be read: "
            "set model.pretrained=null, or name an architecture of open_clip"
        )
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        _check_folder(name, folder, weights=pretrained != "random")
        return f"local-dir:{folder}", None
    if name.startswith("hf-hub:"):
        return name, None
    if name not in open_clip.list_models():
        raise FedPGPError(
            unknown("model", name, [*SHIPPED, *SHORT_NAMES, *open_clip.list_models()])
        )
    if pretrained is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise FedPGPError(
            f"model {name} needs model.pretrained: one of its tags ({tags}), a weights file, or "
            "'random'"
        )
    return name, _expanded(pretrained)


def has_plain_text(name: str) -> bool:
    """Return whether a model's configuration asks for CLIP's own text tower and tokenizer, which
    share a prefix; False too where nothing here has it (``hf-hub:``). No weights are read.

    Args:
        name: as in :func:`load_clip`.
    """
    open_clip = import_open_clip()

    if name in SHIPPED:
        name = resolve_name(name, None)[0]
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        try:
            config = json.loads((folder / "open_clip_config.json").read_text())
            text = config["model_cfg"]["text_cfg"]
        except (OSError, ValueError, KeyError, TypeError):  # load_clip says what is wrong
            return False
    else:
        architecture = SHORT_NAMES.get(name, (name, ""))[0]
        known = architecture in open_clip.list_models()
        text = open_clip.get_model_config(architecture)["text_cfg"] if known else None
    return isinstance(text, dict) and {key for key, value in text.items() if value} <= _SIZES


def _make(
    stem: dict | None, architecture: str, load_weights: bool = True, **options
) -> tuple[nn.Module, Callable]:
    """A model of open_clip's, with the stem that its folder asks for, and how it sees images."""
    open_clip = import_open_clip()

    # a text tower's weights of another model are not this model's
    create = partial(open_clip.create_model_and_transforms, architecture, pretrained_text=False)
    if stem is None:
        model, _, preprocess = create(load_weights=load_weights, **options)
    else:  # its weights fit when the stem is there
        options.pop("require_pretrained", None)
        with _silent_about_random_weights():
            model, _, preprocess = create(load_weights=False, **options)
        put_stem(model, stem)
        if load_weights:
            weights = find_weights(Path(architecture.removeprefix("local-dir:")))
            model.load_state_dict(open_clip.factory.load_state_dict(str(weights)))
    return model, preprocess


@contextlib.contextmanager
def _silent_about_random_weights() -> Iterator[None]:
    """Without open_clip's warning that a model has random weights, where they come afterwards."""

    def other(record: logging.LogRecord) -> bool:
        return "Model initialized randomly" not in record.getMessage()

    logging.getLogger().addFilter(other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(other)


def _expanded(pretrained: str | None) -> str | None:
    return (
        str(Path(pretrained).expanduser())
        if pretrained and pretrained.startswith("~")
        else pretrained
    )


def _check_folder(name: str, folder: Path, weights: bool) -> None:
    """Refuses a folder that is no model of open_clip's: without weights it would
    continue with random ones."""
    if not (folder / "open_clip_config.json").is_file():
        hint = ""
        if (folder / "config.json").is_file():
            hint = (
                " (config.json is the transformers library's; take the same model in "
                "open_clip's format, or of OpenAI's models the archive: model=vit_b16 "
                "model.pretrained=ViT-B-16.pt)"
            )
        raise FedPGPError(
            f"model {name}: there is no open_clip_config.json in {folder}{hint}; save a model "
            "there in open_clip's format"
        )
    if weights and not any(list(folder.glob(pattern)) for pattern in IN_A_FOLDER):
        raise FedPGPError(
            f"model {name}: there are no weights in {folder} ({', '.join(IN_A_FOLDER)}); put "
            "open_clip_model.safetensors or open_clip_pytorch_model.bin there"
        )


def _transform(name: str, architecture: str) -> dict:
    """How images are transformed for a weights file, which has no tag that would say it: a
    short name's own way."""
    open_clip = import_open_clip()

    config = (
        open_clip.get_pretrained_cfg(architecture, SHORT_NAMES[name][1]) or {}
        if name in SHORT_NAMES
        else {}
    )
    kinds = {"image_mean": "mean", "image_std": "std", "image_interpolation": "interpolation"}
    return {option: config[key] for option, key in kinds.items() if key in config}


def _tokenizer(name: str, architecture: str) -> Callable:
    """The tokenizer of an architecture. A model folder names its own; a plain CLIP one
    has none and gets CLIP's.

    Raises:
        FedPGPError: it is Hugging Face's and its library or its files are not there;
            says where they come from.
    """
    open_clip = import_open_clip()

    try:
        return open_clip.get_tokenizer(architecture)
    except ImportError as error:
        raise FedPGPError(
            f"model {name}: its tokenizer needs another library ({first_line(error)}): pip "
            f"install 'fedpgp[hf]', and have {_tokenizer_files(architecture)}"
        ) from error
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise FedPGPError(
            f"model {name}: its tokenizer cannot be read ({first_line(error)}); have "
            f"{_tokenizer_files(architecture)}"
        ) from error


def _tokenizer_files(architecture: str) -> str:
    """Where the files of a Hugging Face tokenizer are expected, and how they come there."""
    open_clip = import_open_clip()

    if architecture.startswith("local-dir:"):
        return (
            f"tokenizer.json and tokenizer_config.json in {architecture.removeprefix('local-dir:')}"
        )
    if architecture.startswith("hf-hub:"):
        text = {"hf_tokenizer_name": architecture.removeprefix("hf-hub:")}
    else:
        text = (open_clip.get_model_config(architecture) or {}).get("text_cfg", {})
    wanted = list(
        dict.fromkeys(text[key] for key in ("hf_tokenizer_name", "hf_model_name") if text.get(key))
    )
    return (
        f"the files of {' and '.join(wanted)} in the Hugging Face cache (where there is "
        f"internet: hf download {wanted[0] if wanted else 'NAME'}; then copy its folder, or set "
        "HF_HOME to it)"
    )


def _cannot_load(
    name: str, architecture: str, tag: str | None, error: Exception, make: Callable
) -> str:
    open_clip = import_open_clip()

    def empty() -> nn.Module | None:
        with contextlib.suppress(Exception):
            return make(load_weights=False)[0]
        return None

    if architecture.startswith("local-dir:"):
        folder = Path(architecture.removeprefix("local-dir:"))
        found = find_weights(folder)
        reason = why_not(found, architecture, empty(), error) if found else first_line(error)
        return f"model {name}: the weights in {folder} cannot be loaded: {reason}"
    if tag and Path(tag).is_file():
        reason = why_not(Path(tag), architecture, empty(), error)
        return f"model {name}: {tag} cannot be loaded into {architecture}: {reason}"
    if architecture.startswith("hf-hub:"):
        return (
            f"model {name}: it cannot be had ({first_line(error)}); download its repository "
            f"where there is internet (hf download {architecture.removeprefix('hf-hub:')} "
            "--local-dir FOLDER) and take model.name=local-dir:FOLDER"
        )
    text = (open_clip.get_model_config(architecture) or {}).get("text_cfg", {})
    if tag is None and text.get("hf_model_name"):
        return (
            f"model {name}: its text tower cannot be made ({first_line(error)}); have "
            f"{_tokenizer_files(architecture)}"
        )
    config = open_clip.get_pretrained_cfg(architecture, tag) or {} if tag else {}
    hub = str(config.get("hf_hub") or "").rstrip("/")
    source = (
        f"https://huggingface.co/{hub} (open_clip_model.safetensors)"
        if hub
        else config.get("url") or "open_clip's list"
    )
    return (
        f"model {name}: the weights {tag!r} are not on this machine and cannot be downloaded "
        f"({first_line(error)}). Download them from {source} and pass the file: model={name} "
        "model.pretrained=FILE (or put them in the Hugging Face cache)"
    )
