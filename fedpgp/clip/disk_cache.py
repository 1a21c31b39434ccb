"""A frozen model with a cache on disk: training needs a few megabytes of the model, and no
open_clip.

A simulation starts a process for each worker, and a deployment one for every message. Loading a
model there costs seconds, while a prompt that is trained on cached image features needs the folded
text tower and the class names' tokens alone. So each result is kept in a file, and the model is
loaded when a result is not there.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedpgp.assets_path import SHIPPED, asset
from fedpgp.clip.model import Cached, FrozenCLIP, resolve_device
from fedpgp.data.store import write_cache
from fedpgp.digests import digest, tensor_digest
from fedpgp.errors import MALFORMED

FORMAT = 2
COMPUTED_BY = ("towers/folded.py", "clip/model.py", "text/prefix_shared.py", "clip/tokens.py")
"""What is cached is what the code in these files computes from the weights."""

NOT_CACHED = ("model", "text_model", "token_embedding", "tokenizer", "preprocess")
"""Attributes that are not cached: the model is loaded for them."""


class CachedCLIP(FrozenCLIP):
    """A frozen model behind a cache on disk.

    Args:
        load: loads it, when it is needed.
        folder: of the cache; it belongs to this model's weights alone.
        device: where the tensors go.
    """

    def __init__(self, load: Callable[[], FrozenCLIP], folder: Path, device: str):
        self._load, self._folder, self._device = load, folder, resolve_device(device)
        self._cached: dict[str, object] = {}

    @classmethod
    def of(
        cls,
        load: Callable[[], FrozenCLIP],
        name: str,
        pretrained: str | None,
        folder: Path,
        device: str,
    ):
        """Return the model of this name and these weights with its cache, a folder below
        ``folder``. A weights file of another size or time is another model; what one kind of device
        computed is not another's.
        """
        about = [str(FORMAT), resolve_device(device).type, name, str(pretrained)]
        for file in _weights(name, pretrained):
            about += [file.name, str(file.stat().st_size), str(file.stat().st_mtime_ns)]
        return cls(load, folder / digest("\n".join(about))[:32], device)

    @cached_property
    def _clip(self) -> FrozenCLIP:
        return self._load()

    def __getattr__(self, name: str):
        if name not in NOT_CACHED:
            raise AttributeError(name)
        return getattr(self._clip, name)

    @property
    def preprocess(self):
        return self._clip.preprocess

    def cached(self, key: str, compute: Callable[[], Cached]) -> Cached:
        if key not in self._cached:
            path = self._folder / f"{digest(key)[:32]}.safetensors"
            stamp = f"{key}\n{_version()}"
            found = _read(path, stamp, self.device)
            if found is MISSING:
                found = compute()
                _write(path, stamp, found)
            self._cached[key] = found
        return self._cached[key]

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return getattr(
            torch, self.cached("dtype", lambda: str(self._clip.dtype).removeprefix("torch."))
        )

    @property
    def width(self) -> int:
        return self.cached("width", lambda: self._clip.width)

    @property
    def context_length(self) -> int:
        return self.cached("context length", lambda: self._clip.context_length)

    @property
    def logit_scale(self) -> float:
        return self.cached("logit scale", lambda: self._clip.logit_scale)

    @property
    def fingerprint(self) -> str:
        return self.cached("fingerprint", lambda: self._clip.fingerprint)


def _weights(name: str, pretrained: str | None) -> Iterator[Path]:
    """The files of this machine that a model's weights come from."""
    if name in SHIPPED:
        yield asset(name, "open_clip_model.safetensors")
    elif name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).expanduser()
        yield from sorted(file for file in folder.glob("*") if file.is_file())
    elif pretrained and (file := Path(pretrained).expanduser()).is_file():
        yield file


@cache
def _version() -> str:
    """Return the version of the code and of torch: what another version has written is computed
    again."""
    folder = Path(__file__).parents[1]
    code = digest(*((folder / name).read_bytes() for name in COMPUTED_BY))
    return f"{code} torch {torch.__version__}"


MISSING = object()
"""What :func:`_read` gives when there is no file, or none that can be trusted."""


def _write(path: Path, stamp: str, value: object) -> None:
    """A file whose header holds the stamp, a checksum of the tensors, and the value
    where it is no tensor."""
    tensors = {"": value} if isinstance(value, Tensor) else value if _is_tensors(value) else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = "" if tensors else json.dumps(value)
    metadata = {"stamp": stamp, "json": text, "sha256": tensor_digest(text, tensors)}
    write_cache(path, save(tensors, metadata), flush=False)


def _read(path: Path, stamp: str, device: torch.device) -> object:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["stamp"] != stamp or metadata["sha256"] != tensor_digest(
            metadata["json"], tensors
        ):
            return MISSING
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return tensors.get("", tensors) if tensors else json.loads(metadata["json"])
    except (OSError, SafetensorError, *MALFORMED):
        return MISSING


def _is_tensors(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(v, Tensor) for v in value.values())
    )
