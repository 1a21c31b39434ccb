"""Weights of a model: which tag or file fits which architecture, and why one does not, in
words one can act on."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpgp.archives import check_members
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError, unknown

IN_A_FOLDER = ("*.safetensors", "*.bin", "*.pth")
"""Weights that open_clip finds in a folder."""
ARCHIVE_ONLY = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold beside the weights."""
SUFFIX = "-quickgelu"
SHOWN = 4
"""Names that a message lists."""

Shapes = dict[str, tuple[int, ...]]


def is_file(tag: str | None) -> bool:
    """Whether a name of weights is a path, not one of open_clip's tags."""
    return bool(tag) and bool(Path(tag).suffix or "/" in tag)


def check_tag(architecture: str, tag: str) -> None:
    """Refuses a tag that the architecture does not have, and an activation that
    open_clip would only warn of.

    Raises:
        FedPGPError: naming the tags, or the architecture that these weights were trained with.
    """
    open_clip = import_open_clip()

    tags, other = (
        open_clip.list_pretrained_tags_by_model(architecture),
        other_activation(architecture),
    )
    if tag.lower().replace("-", "_") not in tags:
        if other and tag in open_clip.list_pretrained_tags_by_model(other):
            raise FedPGPError(
                f"the weights {tag!r} were trained with the activation of {other}: use "
                f"model.name={other}"
            )
        raise FedPGPError(unknown(f"weights for {architecture}", tag, tags))
    quick = bool((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("quick_gelu", False))
    if (
        quick != has_quick_gelu(architecture) and other
    ):  # the only architecture with a tag is the right one
        raise FedPGPError(
            f"the weights {tag!r} were trained with {'QuickGELU' if quick else 'GELU'}, "
            f"{architecture} has the other activation: use model.name={other}"
        )


def check_file(name: str, architecture: str, file: Path) -> None:
    """Refuses a file that is not there, and OpenAI's archives for a model without their activation;
    of other files it warns that they do not say theirs.

    Raises:
        FedPGPError: with the path, or the architecture to take.
    """
    if not file.is_file():
        raise FedPGPError(
            f"model {name}: weights file {file} does not exist; give the path of an open_clip "
            "checkpoint, or of OpenAI's archive (ViT-B-16.pt)"
        )
    quick, other = has_quick_gelu(architecture), other_activation(architecture)
    if not is_archive(file):
        take = f"; if these were trained with the other one, use {other}" if other else ""
        warnings.warn(
            f"model {name}: a weights file does not say its activation; {architecture} takes "
            f"{'QuickGELU' if quick else 'GELU'} (OpenAI's weights take QuickGELU, LAION's "
            f"GELU){take}",
            stacklevel=4,
        )
    elif not quick:
        use = f": use model.name={other}" if other else ""
        raise FedPGPError(
            f"model {name}: {file} is an archive of OpenAI's, whose models have QuickGELU; "
            f"{architecture} has not{use}"
        )


def has_quick_gelu(architecture: str) -> bool:
    """Whether an architecture of open_clip's list has QuickGELU."""
    open_clip = import_open_clip()

    return bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))


def other_activation(architecture: str) -> str | None:
    """The same architecture with the other activation, where open_clip has one."""
    open_clip = import_open_clip()

    other = (
        architecture.removesuffix(SUFFIX)
        if architecture.endswith(SUFFIX)
        else architecture + SUFFIX
    )
    return other if other in open_clip.list_models() else None


def find_weights(folder: Path) -> Path | None:
    """The weights that open_clip takes from a folder: safetensors first, of each
    kind its own name first."""
    found = [file for pattern in IN_A_FOLDER for file in sorted(folder.glob(pattern))]
    named = [file for file in found if file.name.startswith("open_clip")]
    safe = [file for file in named if file.suffix == IN_A_FOLDER[0][1:]]
    return next(iter([*safe, *named, *found]), None)


def is_archive(file: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI publishes its models and CoOp keeps
    them.

    Raises:
        FedPGPError: a zip archive that would unpack to far more than it holds.
    """
    if not zipfile.is_zipfile(file):
        return False
    check_members(file)
    with zipfile.ZipFile(file) as opened:
        return any(name.endswith("/constants.pkl") for name in opened.namelist())


def load_archive(model: nn.Module, file: Path) -> None:
    """Loads OpenAI's TorchScript archive into a model. Nothing in it is run.

    Raises:
        RuntimeError: of another architecture, or damaged.
    """
    model.load_state_dict(_of_archive(file))


def why_not(file: Path, architecture: str, model: nn.Module | None, error: Exception) -> str:
    """Why a file's weights cannot be loaded, and what to do.

    Args:
        file: the weights.
        architecture: what they should go into.
        model: the same with random weights; None where there is none.
        error: what was raised.
    """
    if re.search(r"\d+-of-\d+", file.name):
        return (
            f"it is in several parts ({file.name} is one), of which open_clip reads one alone; put "
            "all tensors into one file"
        )
    try:
        there = _shapes(file)
    except Exception as unreadable:
        if isinstance(unreadable, pickle.UnpicklingError) and zipfile.is_zipfile(file):
            return (
                "it holds Python objects beside the tensors, which are not run for safety; "
                "where the file can be trusted, save the tensors alone: "
                "torch.save(model.state_dict(), FILE)"
            )
        return (
            f"it cannot be read ({first_line(unreadable)}); it is truncated or no weights file: "
            "fetch it again"
        )
    if any(key.startswith(("text_model.", "vision_model.")) for key in there):
        return (
            "it has the layout of the transformers library (text_model.…, vision_model.…); take "
            "the same model in open_clip's format (open_clip_model.safetensors or "
            "open_clip_pytorch_model.bin of its page), or of OpenAI's models the archive "
            "(ViT-B-16.pt)"
        )
    if not any(key.startswith("visual.") for key in there):
        return (
            f"it holds no CLIP model: its tensors are {_some(there)}; prompts alone are no weights"
        )
    fitting = _fitting(there)
    if fitting and architecture not in fitting:
        names = " or ".join(fitting[:SHOWN])
        return f"its weights are those of another architecture: model.name={names}"
    if model is None:
        return first_line(error)
    here = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    sizes = [
        f"{key} is {there[key]} and should be {here[key]}"
        for key in here
        if key in there and there[key] != here[key]
    ]
    if sizes:
        return f"its weights are of another architecture: {sizes[0]}"
    missing, more = (
        [key for key in here if key not in there],
        [key for key in there if key not in here],
    )
    if missing or more:
        parts = [f"it lacks {_some(missing)}"] if missing else []
        parts += [f"it has {_some(more)} too"] if more else []
        return f"its weights are of another architecture: {', '.join(parts)}"
    return first_line(error)


def first_line(error: Exception) -> str:
    """What an error says, in a line of at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _of_archive(file: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's files are what they are
        state = torch.jit.load(str(file), map_location="cpu").state_dict()
    return {key: tensor for key, tensor in state.items() if key not in ARCHIVE_ONLY}


def _shapes(file: Path) -> Shapes:
    """Names and shapes of a file's tensors, by the names that open_clip reads them under."""
    state = (
        _of_archive(file)
        if is_archive(file)
        else import_open_clip().factory.load_state_dict(str(file))
    )
    return {key: tuple(tensor.shape) for key, tensor in state.items() if isinstance(tensor, Tensor)}


def _fitting(there: Shapes) -> list[str]:
    """Architectures of open_clip's list with an image and text tower of these sizes."""
    open_clip = import_open_clip()

    try:
        sizes = _sizes(there)
    except (KeyError, IndexError):
        return []
    return [
        name
        for name in open_clip.list_models()
        if _configured_sizes(open_clip.get_model_config(name)) == sizes
    ]


def _sizes(there: Shapes) -> tuple:
    """Layers, width and patches of a ViT, or layers and width of a ResNet; width, layers and length
    of the text tower; length of a feature."""
    text = "text." if "text.positional_embedding" in there else ""
    length, width = there[f"{text}positional_embedding"]
    layers = _count(there, f"{text}transformer.resblocks.")
    embed = there[f"{text}text_projection"][1]
    if "visual.conv1.weight" in there and "visual.class_embedding" in there:
        image_width, _, patch, _ = there["visual.conv1.weight"]
        side = round((there["visual.positional_embedding"][0] - 1) ** 0.5) * patch
        vision = (_count(there, "visual.transformer.resblocks."), image_width, patch, side)
    else:
        blocks = [_count(there, f"visual.layer{i}.") for i in (1, 2, 3, 4)]
        side = round((there["visual.attnpool.positional_embedding"][0] - 1) ** 0.5) * 32
        vision = (blocks, there["visual.layer1.0.conv1.weight"][0], None, side)
    return vision, (width, layers, length), embed


def _configured_sizes(config: Mapping) -> tuple:
    """The same of an architecture of open_clip's list."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    image = tuple(vision.get(key) for key in ("layers", "width", "patch_size", "image_size"))
    return (
        image,
        (text.get("width"), text.get("layers"), text.get("context_length", 77)),
        config["embed_dim"],
    )


def _count(there: Shapes, prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in there if key.startswith(prefix)})


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )
