"""Checkpoints of the server: one file a round, whole or not there, checked on
reading, the last two kept.

``round_00005.safetensors`` holds the server's tensors; its header's metadata holds the rest as JSON
("fedpgp"), and a SHA-256 over that JSON and every tensor's name, type, shape and bytes ("sha256").
The checksum's rule is the same in every format version.
"""

import contextlib
import json
import re
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedpgp.atomic_files import write_atomically
from fedpgp.digests import tensor_digest
from fedpgp.errors import MALFORMED, FedPGPError

FORMAT = 3
OLDER: dict[int, dict[str, object]] = {2: {"placed": {}}}
"""Formats that are read too, with what their checkpoints may lack. (Of a run's data
they have no record.)"""
RESUMED = ("run", "config", "rule", "observer", "table", "traffic", "seconds", "images", "placed")
"""What a run is resumed from beside the tensors."""
KINDS = {
    **dict.fromkeys(("round", "images"), int),
    **dict.fromkeys(("run", "stopped"), str),
    **dict.fromkeys(
        ("config", "observer", "traffic", "seconds", "placed", "updates", "rule"), dict
    ),
    "data": (dict, type(None)),
    "table": list,
}
"""The types of what a checkpoint has beside the tensors."""
KEEP = 2
_NAME = re.compile(r"round_(\d+)\.safetensors")


OTHER_WEIGHTS = (
    "the model's weights are not those that the run was trained with (replaced since, or read by "
    "another version of open_clip or torch)"
)


class Corrupted(FedPGPError):
    """The file is not what was written."""


class Unfit(FedPGPError):
    """A checkpoint whose tensors its run cannot have."""


def save_checkpoint(
    folder: Path, server_round: int, tensors: Mapping[str, np.ndarray], info: Mapping[str, object]
) -> Path:
    """Write the checkpoint of a round and remove all but the newest two.

    Raises:
        FedPGPError: it could not be written (disk full, read-only); the earlier ones are untouched.
    """
    text = json.dumps({"format": FORMAT, "round": server_round, **info})
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    path = folder / f"round_{server_round:05d}.safetensors"
    if path.is_dir() and not path.is_symlink():  # not ours, and in the way
        path.rename(path.with_name(f"{path.name}.aside-{uuid.uuid4().hex[:8]}"))
    write_atomically(
        path, save(tensors, metadata={"fedpgp": text, "sha256": tensor_digest(text, tensors)})
    )
    for old in checkpoints(folder)[:-KEEP]:
        with contextlib.suppress(OSError):  # a folder of that name stays
            old.unlink()
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Return a checkpoint's tensors and information.

    Raises:
        Corrupted: the file is damaged, or cannot be read.
        FedPGPError: it was written by another version of the format.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:  # a link to nowhere, a folder
        raise Corrupted(f"the checkpoint {path} is no file") from error
    except OSError as error:
        raise Corrupted(f"the checkpoint {path} cannot be read ({error.strerror})") from error
    try:
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors = dict(sorted(load(data).items()))  # safetensors gives them in any order
        intact = metadata["sha256"] == tensor_digest(metadata["fedpgp"], tensors)
        info = json.loads(metadata["fedpgp"])
        _check_kinds(tensors, info)
    except (SafetensorError, struct.error, *MALFORMED) as error:
        raise Corrupted(f"the checkpoint {path} is damaged ({type(error).__name__})") from error
    if not intact:
        raise Corrupted(f"the checkpoint {path} is damaged (its checksum is wrong)")
    if info.get("format") not in (FORMAT, *OLDER):
        known = ", ".join(map(str, sorted((FORMAT, *OLDER))))
        raise FedPGPError(
            f"the checkpoint {path} has format {info.get('format')}; this version of fedpgp "
            f"reads the formats {known}. Use the version that wrote it (git_commit in "
            "config.yaml), or start the run anew with another run_dir; experiments.report reads "
            "its figures"
        )
    return tensors, {**OLDER.get(info["format"], {}), **info}


def _check_kinds(tensors: Mapping[str, np.ndarray], info: Mapping) -> None:
    """Raise ValueError, or what else is in :data:`MALFORMED`, for a part that is missing or of
    another type; of another format nothing is known but that it has a number."""
    if info["format"] not in (FORMAT, *OLDER):
        return
    wrong = [name for name in KINDS if name in info and not isinstance(info[name], KINDS[name])]
    wrong += [name for name in ("run", "round") if name not in info]
    (clients,) = tensors["committed"].shape
    of_clients = [name for name in tensors if name.startswith("zero_shot")]
    wrong += [name for name in of_clients if tensors[name].shape != (clients,)]
    whole = [name for name in ("committed", "zero_shot_asked") if name in tensors]
    wrong += [name for name in whole if tensors[name].dtype.kind != "i"]
    if wrong:
        raise ValueError(f"{wrong[0]} is missing or of another type")


def check_complete(folder: Path, info: Mapping[str, object]) -> None:
    """Refuse to resume from a checkpoint of a version that did not keep all of :data:`RESUMED`."""
    if missing := [name for name in RESUMED if name not in info]:
        raise FedPGPError(
            f"the checkpoints in {folder} were written by another version of fedpgp (they lack "
            f"{', '.join(missing)}): they can be scored and answer, but the run cannot be "
            "resumed; start it anew with another run_dir"
        )


def check_fits(folder: Path, tensors: Mapping[str, np.ndarray], federation) -> None:
    """Refuse a checkpoint whose tensors are not those that its run can have.

    Args:
        folder: of the checkpoint.
        tensors: that it holds.
        federation: the run's :class:`fedpgp.federation.Federation`.

    Raises:
        Unfit: naming a tensor that is missing, of another shape or kind, or not finite.
    """
    shared = federation.models.initial_shared()
    wanted = {f"shared/{name}": (tensor.shape, tensor.dtype) for name, tensor in shared.items()}
    state = federation.server.initial_state()
    kept = {f"memory/{name}": (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    wanted |= {name: about for name, about in kept.items() if name in tensors}
    wanted["committed"] = (federation.num_clients,), np.dtype(np.int64)
    for name, (shape, dtype) in wanted.items():
        short, tensor = name.partition("/")[2] or name, tensors.get(name)
        if tensor is None:
            what = f"has no {short}"
        elif tensor.shape != shape:
            what = f"has {short} of the shape {tensor.shape} and not {shape}"
        elif tensor.dtype.kind != dtype.kind:
            what = f"has {short} of the type {tensor.dtype} and not {dtype}"
        elif not np.isfinite(tensor).all():
            what = f"has {short} that is NaN or Inf"
        else:
            continue
        raise Unfit(
            f"the checkpoint in {folder} {what}: it is of another run, or was changed; restore "
            "it, or start a new run"
        )


def same_model(info: Mapping[str, object], fingerprint: str) -> bool:
    """Return whether a model is the one that a checkpoint was made with; True where an older
    version did not record it."""
    return info.get("model_sha256") in (None, fingerprint)


def latest_checkpoint(
    folder: Path, warn: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], dict] | None:
    """Return the newest intact checkpoint, None where there is none at all; damaged ones are named
    through ``warn`` and passed over.

    Raises:
        FedPGPError: there are checkpoints but none is intact, or the newest intact one has another
            format.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except Corrupted as error:
            warn(f"{error}; trying the one before")
    if paths:
        raise FedPGPError(f"no checkpoint in {folder} is intact; start anew with another run_dir")
    return None


def remove_after(folder: Path, server_round: int) -> None:
    """Remove the checkpoints of later rounds."""
    for path in checkpoints(folder):
        if int(_NAME.fullmatch(path.name)[1]) > server_round:
            with contextlib.suppress(OSError):
                path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, oldest first."""
    found = {
        int(match[1]): path for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))
    }
    return [found[server_round] for server_round in sorted(found)]
