"""Which weights and data sets are on this machine, and what the others need."""

from collections.abc import Mapping
from pathlib import Path

from experiments.checkup.public_data import FACTS, ON_ITS_PAGE, WEIGHTS
from fedpgp.clip.loading import SHORT_NAMES
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.clip.weights import is_file
from fedpgp.data import load_dataset
from fedpgp.data.base import data_root
from fedpgp.data.files import MissingData
from fedpgp.errors import FedPGPError
from fedpgp.protocols import make_protocol
from fedpgp.protocols.cross_class import NINE, CrossClass
from fedpgp.protocols.cross_dataset import CrossDataset, as_specs

SHIPPED_OR_OWN = ("emoji", "folder", "hub")
"""Data sets that are no public ones to be found."""
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of weights in a repository of the hub, as open_clip looks for them."""
ARCHIVES = Path("~/.cache/clip")
"""Where openai/CLIP and open_clip keep what they fetch from an address."""


def hub_folder() -> Path:
    """Return the folder of the Hugging Face cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def weights(names: list[str]) -> list[dict]:
    """Return the models that have weights of their own to be found: where these are, or what they
    need.

    Args:
        names: of :data:`fedpgp.clip.loading.SHORT_NAMES`.
    """
    return [_weights(name) for name in names]


def _weights(name: str) -> dict:
    from huggingface_hub import try_to_load_from_cache

    architecture, tag = SHORT_NAMES[name]
    config = import_open_clip().get_pretrained_cfg(architecture, tag) or {}
    repository, _, file = str(config.get("hf_hub") or "").rpartition("/")
    about = {"model": name, "weights": tag}
    for wanted in (file,) if file else HUB_FILES:
        found = try_to_load_from_cache(repository, wanted) if repository else None
        if isinstance(found, str):
            return {**about, "found": found, "use": f"model={name}"}
    url = str(config.get("url") or "")
    archive = ARCHIVES.expanduser() / url.rsplit("/", 1)[-1]
    if url and archive.is_file():
        use = f"model={name} model.pretrained={ARCHIVES / archive.name}"
        return {**about, "found": str(archive), "use": use}
    facts = WEIGHTS[name]
    return {
        **about,
        "found": None,
        "address": f"https://huggingface.co/{repository}" if repository else url,
        "size": facts.size,
        "licence": facts.licence,
        "command": f"hf download {repository} {file or HUB_FILES[0]}",
    }


def data_sets(names: list[str]) -> list[dict]:
    """Return data sets: how many classes and images are there, or what they need. A data set that
    is there is read as a run would read it, without opening an image.

    Args:
        names: of readers.
    """
    return [_data_set(name) for name in names]


def _data_set(name: str) -> dict:
    facts = FACTS.get(name)
    about = {"dataset": name}
    try:
        found = load_dataset(name)
    except MissingData as missing:
        source, one = missing.source, f"load_dataset('{name}', download=True)"
        fetch = f'python -c "from fedpgp.data import load_dataset; {one}"'
        return {
            **about,
            "found": None,
            "address": source.page,
            "size": source.size,
            "licence": facts.licence if facts else ON_ITS_PAGE,
            "folder": str(missing.folder),
            "command": fetch if source.archives else None,
        }
    except FedPGPError as error:
        return {**about, "found": None, "problem": str(error)}
    return {
        **about,
        "found": str(data_root()),
        "classes": len(found.class_names),
        "train": len(found.train) if found.train is not None else 0,
        "test": len(found.test) if found.test is not None else 0,
        "notes": list(found.notes),
    }


def data_of(config: Mapping) -> list[str]:
    """Return the public data sets that a configuration's run reads."""
    own, protocol = config["dataset"]["name"], make_protocol(config["protocol"])
    if isinstance(protocol, CrossDataset):
        given = protocol.usual(own)[1] if protocol.targets is None else protocol.targets
        others = as_specs(given, "targets")
    elif isinstance(protocol, CrossClass) and own != "emoji":
        others = as_specs(NINE if protocol.datasets is None else protocol.datasets, "datasets")
    else:
        others = []
    names = dict.fromkeys([own, *(str(spec["name"]) for spec in others)])
    return [name for name in names if name not in SHIPPED_OR_OWN]


def weights_of(config: Mapping) -> dict | None:
    """Return what is there of a configuration's weights; None: they are shipped, or random."""
    name, pretrained = config["model"]["name"], config["model"].get("pretrained")
    if is_file(pretrained):
        there = Path(pretrained).expanduser().is_file()
        about = {"model": name, "weights": pretrained, "found": pretrained if there else None}
        return about if there else {**about, "problem": f"{pretrained} is not there"}
    short = next((s for s, both in SHORT_NAMES.items() if both == (name, pretrained)), None)
    return None if short is None else _weights(short)
