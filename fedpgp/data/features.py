"""Image features, computed once and kept on disk.

The image tower is frozen, so an image's feature never changes. A cache file is a safetensors
file with one tensor, mapped into memory by every process that asks. Its name holds the key
(images, weights, preprocessing) and its header a checksum, so a stale, truncated or foreign file
is never used: it is made anew.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.atomic_files import remove_leftovers
from fedpgp.data.base import Split
from fedpgp.data.store import cache_folder, cannot_write, locked, write_cache
from fedpgp.digests import digest
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.locks import Busy

if TYPE_CHECKING:  # the model is not needed to know what a data set is
    from fedpgp.clip import FrozenCLIP

log = logging.getLogger(__name__)

FORMAT = "3"
"""Part of every key: raise it when the meaning of a cache file changes."""

PART = 256
"""Images that one process encodes at a time, where others may take the next ones."""

MOST_PARTS = 64
"""Of a split: parts of a very large one are larger."""

PART_SUFFIX = ".part"


def encode_split(
    clip: "FrozenCLIP",
    split: Split,
    *,
    cache_dir: str | Path | None = None,
    dataset_name: str,
    split_name: str,
    what: str = "features",
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Unit-norm features of a split's images, their patches or their mirror images, from the cache
    or, the first time, from the model.

    Several processes may ask at once: they share the work, part by part, and one writes the file.
    Parts that a killed process finished are used again.

    Args:
        clip: the frozen model; images go through its own preprocessing.
        split: N images.
        cache_dir: where the files are kept; None is $FEDPGP_CACHE, else ~/.cache/fedpgp/features.
        dataset_name, split_name: only make the file's name readable.
        what: ``features``, ``patches``, ``mirrored`` (features of the mirrored images) or
            ``features_raw`` (not of unit norm).
        batch_size: images in one pass through the image tower; None: :func:`images_per_chunk`.
        progress: called with (images done, N) after each batch.

    Returns:
        (N, embed), or (N, patches, embed), float32, read-only, mapped from the file.

    Raises:
        FedPGPError: an image that cannot be read; no space left (says where, and how to move the
            cache).
    """
    path, key = _place(clip, split, cache_dir, dataset_name, split_name, what)
    batch_size = batch_size or images_per_chunk(clip.device)
    found = _open_cached(path, key, len(split))
    if found is not None:
        return found
    made = None
    if what == "features":
        places = {"cache_dir": cache_dir, "dataset_name": dataset_name}
        raw = encoded_before(clip, split, **places, split_name=split_name, what="features_raw")
        made = None if raw is None else _unit_norm(clip, raw, batch_size)
    parts = _Parts(path, key, len(split), batch_size)
    encode = partial(_encode, clip, split, what, path.parent, batch_size)
    if made is None:
        parts.take(encode, progress)
    with locked(path):
        found = _open_cached(path, key, len(split))  # made by another process while this one waited
        if found is None:
            if made is None:
                made = parts.joined(encode, progress)
            remove_leftovers(path.parent, f".{path.name}.*.tmp")
            _write(path, key, made)
            found = _open_cached(path, key, len(split))
        parts.remove()
    if found is None:
        raise FedPGPError(
            f"the feature cache {path} cannot be read back after it was written; is the disk sound?"
        )
    return found


class _Parts:
    """A split in parts that several processes encode at once, each a file of its own beside the
    cache file. A part is whole batches, so that features are the same to the last bit.

    Args:
        path: the cache file.
        key: of the cache file.
        images: of the split.
        batch_size: images in one pass.
    """

    def __init__(self, path: Path, key: str, images: int, batch_size: int):
        size = max(PART, -(-images // MOST_PARTS))
        size = -(-size // batch_size) * batch_size
        self._path, self._key = path, key
        starts = range(0, images, size)
        self._rows = [range(start, min(start + size, images)) for start in starts]

    def take(
        self, encode: Callable[..., np.ndarray], progress: Callable[[int, int], None] | None
    ) -> None:
        """Encode those parts that no other process has or had. Of one part nothing is done."""
        if len(self._rows) < 2:
            return
        for rows in self._rows:
            if self._path.exists():  # another process has joined all parts
                return
            with ExitStack() as held:
                try:
                    held.enter_context(locked(self._file(rows), wait=False))
                except Busy:
                    continue
                self._part(rows, encode, progress)

    def joined(
        self, encode: Callable[..., np.ndarray], progress: Callable[[int, int], None] | None
    ) -> np.ndarray:
        """Return the features of all parts, after the processes that still have one."""
        if len(self._rows) < 2:
            return encode(self._rows[0] if self._rows else range(0), progress)
        found = []
        for rows in self._rows:
            with locked(self._file(rows)):
                found.append(self._part(rows, encode, progress))
        return np.concatenate(found)

    def remove(self) -> None:
        """Remove the parts' files, and their locks: who holds one now does work twice at worst."""
        if len(self._rows) > 1:
            remove_leftovers(self._path.parent, f"{self._path.name}.*{PART_SUFFIX}")
            remove_leftovers(self._path.parent, f".{self._path.name}.*{PART_SUFFIX}.lock")

    def _part(
        self,
        rows: range,
        encode: Callable[..., np.ndarray],
        progress: Callable[[int, int], None] | None,
    ) -> np.ndarray:
        file, key = self._file(rows), f"{self._key} {rows.start}-{rows.stop}"
        found = _open_cached(file, key, len(rows))
        if found is None:
            done = sum(len(part) for part in self._rows if self._file(part).exists())
            found = encode(rows, progress, done)
            _write(file, key, found)
        return found

    def _file(self, rows: range) -> Path:
        return self._path.with_name(f"{self._path.name}.{rows.start}-{rows.stop}{PART_SUFFIX}")


def images_per_chunk(device: torch.device) -> int:
    """Images in one pass through an image tower: 128 on a GPU, 32 on a CPU, whose caches hold no
    more."""
    return 32 if device.type == "cpu" else 128


def encoded_before(
    clip: "FrozenCLIP",
    split: Split,
    *,
    cache_dir: str | Path | None = None,
    dataset_name: str,
    split_name: str,
    what: str = "features",
) -> np.ndarray | None:
    """What :func:`encode_split` would find in the cache; None where it would have to encode."""
    path, key = _place(clip, split, cache_dir, dataset_name, split_name, what)
    return _open_cached(path, key, len(split))


def _place(
    clip: "FrozenCLIP",
    split: Split,
    cache_dir: str | Path | None,
    dataset_name: str,
    split_name: str,
    what: str,
) -> tuple[Path, str]:
    """The cache file of a split's features, and its key."""
    key = feature_key(clip, split, what)
    return cache_folder(cache_dir) / f"{dataset_name}-{split_name}-{key[:24]}.safetensors", key


def feature_key(clip: "FrozenCLIP", split: Split, what: str = "features") -> str:
    """SHA-256 (hex) of all that features depend on: the images, the model's weights, its
    preprocessing, and which."""
    parts = [
        FORMAT,
        clip.fingerprint,
        clip.preprocessing,
        split.fingerprint,
        *([what] if what != "features" else []),
    ]
    return digest("\n".join(parts))


def _encode(
    clip: "FrozenCLIP",
    split: Split,
    what: str,
    folder: Path,
    batch_size: int,
    rows: range,
    progress: Callable[[int, int], None] | None,
    before: int = 0,
) -> np.ndarray:
    """Encode some rows of a split; ``before``: images that are encoded already, for the
    progress."""
    features: np.ndarray | None = None
    done = 0
    for pixels in _batches(clip, split, rows, batch_size):
        encoded = clip.features_of(what, pixels).float().cpu().numpy()
        if features is None:
            features = np.empty((len(rows), *encoded.shape[1:]), dtype=np.float32)
            whole = encoded[0].nbytes * len(split) * (1 if len(rows) == len(split) else 2)
            _check_space(folder, whole)  # now, rather than after an hour of encoding
        features[done : done + len(encoded)] = encoded
        done += len(encoded)
        if progress is not None:
            progress(min(before + done, len(split)), len(split))
    if features is None:
        raise FedPGPError("a split without images has no features")
    bad = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(axis=1))
    if len(bad):
        raise FedPGPError(
            f"the model gives NaN or Inf for {len(bad)} of {len(rows)} images, first for "
            f"{split.describe(rows[int(bad[0])])}; check its weights"
        )
    return features


def _unit_norm(clip: "FrozenCLIP", raw: np.ndarray, batch_size: int) -> np.ndarray | None:
    """``features`` of ``features_raw``, without another pass through the image tower: the same to
    the last bit, by the same batches on the same device. None for a model in float64, whose raw
    features have lost digits in the file."""
    if clip.dtype == torch.float64:
        return None
    batches = torch.from_numpy(np.array(raw)).split(batch_size)
    found = [F.normalize(batch.to(clip.device), dim=-1).cpu().numpy() for batch in batches]
    return np.concatenate(found)


def _batches(clip: "FrozenCLIP", split: Split, rows: range, batch_size: int) -> Iterator[Tensor]:
    """Preprocessed batches (B, 3, R, R) of some rows, in order; for a GPU decoded by threads a few
    batches ahead (on a CPU they would only take the image tower's cores from it)."""
    preprocess = clip.preprocess

    def load(start: int) -> Tensor:
        return torch.stack(
            [preprocess(split.image(i)) for i in range(start, min(start + batch_size, rows.stop))]
        )

    starts = iter(range(rows.start, rows.stop, batch_size))
    if clip.device.type == "cpu":
        yield from map(load, starts)
        return
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque(pool.submit(load, start) for start in islice(starts, workers + 1))
        try:
            while ahead:
                yield ahead.popleft().result()
                start = next(starts, None)
                if start is not None:
                    ahead.append(pool.submit(load, start))
        finally:  # an error or Ctrl-C: do not decode what nobody waits for
            for future in ahead:
                future.cancel()


def _check_space(folder: Path, needed: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if shutil.disk_usage(folder).free < needed:
            raise cannot_write(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed)


def _write(path: Path, key: str, features: np.ndarray) -> None:
    payload = np.ascontiguousarray(features, dtype="<f4").data.cast("B")
    header = {
        "__metadata__": {"key": key, "sha256": digest(payload)},
        "features": {
            "dtype": "F32",
            "shape": list(features.shape),
            "data_offsets": [0, len(payload)],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensor aligned
    write_cache(path, len(text).to_bytes(8, "little"), text, payload)


def _open_cached(path: Path, key: str, rows: int) -> np.ndarray | None:
    """The features of a cache file; None when there is none, or none that can be trusted."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError("truncated header")
            header = json.loads(file.read(length))
        entry, metadata = header["features"], header["__metadata__"]
        shape = tuple(entry["shape"])
        if (
            metadata["key"] != key
            or shape[0] != rows
            or size != 8 + length + 4 * int(np.prod(shape))
        ):
            raise ValueError("wrong key or size")
        features = np.memmap(path, dtype="<f4", mode="r", offset=8 + length, shape=shape)
        if digest(features.data) != metadata["sha256"]:
            raise ValueError("wrong checksum")
        return features
    except FileNotFoundError:
        return None
    except (OSError, *MALFORMED) as error:
        _tell_damaged(path, str(error))
        return None


@functools.cache
def _tell_damaged(path: Path, reason: str) -> None:
    """Once: a cache is looked for again behind the lock."""
    log.warning("the feature cache %s is damaged (%s) and made anew", path, reason)
