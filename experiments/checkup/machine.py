"""The machine: processor, memory, devices, precision, versions, folders."""

import os
import platform
import re
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch

from fedpgp.data.base import data_root
from fedpgp.data.store import cache_folder
from fedpgp.precision import native_bfloat16

PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "flwr", "ray", "hydra-core"),
    *("numpy", "pillow", "safetensors"),
)
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the limits of a container."""
_EXTRA = re.compile(r"""extra == ['"]([\w-]+)['"]""")
_NAME = re.compile(r"[\w.-]+")


def processor() -> dict:
    """Return the processor: its name, cores, those this process may use, the threads of torch and
    whether it computes in bfloat16 by itself."""
    lines = _cpuinfo()
    name = next((v for k, v in lines if k in ("model name", "Model")), platform.processor())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": name or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "usable": min(usable, _quota() or usable),
        "threads": torch.get_num_threads(),
        "bfloat16": native_bfloat16(torch.device("cpu")),
    }


def memory() -> dict:
    """Return bytes: of the machine (or the container that this is), free, and of /dev/shm, where
    Ray keeps its objects."""
    found = psutil.virtual_memory()
    limit = _number(CGROUP / "memory.max")
    total = found.total if limit is None else min(limit, found.total)
    used = _number(CGROUP / "memory.current") if limit is not None else None
    free = found.available if used is None else min(found.available, max(0, total - used))
    shared = Path("/dev/shm")
    return {
        "total": total,
        "free": free,
        "shared_free": shutil.disk_usage(shared).free if shared.is_dir() else None,
    }


def devices() -> list[dict]:
    """Return the accelerators that torch sees: name, bytes of memory, free ones, and whether it
    computes in bfloat16 by itself."""
    if torch.cuda.is_available():
        found = []
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            about = {"device": f"cuda:{i}", "name": name, "total": total, "free": free}
            found.append({**about, "bfloat16": native_bfloat16(torch.device("cuda", i))})
        return found
    if torch.backends.mps.is_available():
        total = psutil.virtual_memory().total
        about = {"device": "mps", "name": platform.processor(), "total": total, "free": None}
        return [{**about, "bfloat16": None}]
    return []


def versions() -> dict[str, str | None]:
    """Return the version of Python and of what runs depend on; None: it is not there."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def extras() -> dict[str, list[str]]:
    """Return the optional groups of packages of this project, each with those that are missing."""
    found: dict[str, list[str]] = {}
    try:
        needed = requires("fedpgp") or []
    except PackageNotFoundError:
        return {}
    for text in needed:
        extra, name = _EXTRA.search(text), _NAME.match(text)
        if extra and name and name[0] != "fedpgp" and extra[1] not in ("dev", "docs"):
            missing = found.setdefault(extra[1], [])
            if _version(name[0]) is None:
                missing.append(name[0])
    return found


def folders(hub: Path) -> list[dict]:
    """Return the folders that runs use: what for, where, free bytes, and whether they may be
    written.

    Args:
        hub: of the Hugging Face cache.
    """
    places = {
        "data sets": data_root(),
        "features": cache_folder(),
        "weights": hub,
        "runs": Path.cwd() / "outputs",
        "temporary files": Path(tempfile.gettempdir()),
    }
    return [_folder(what, path) for what, path in places.items()]


def _folder(what: str, path: Path) -> dict:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return {
        "for": what,
        "folder": str(path),
        "free": shutil.disk_usage(there).free,
        "writable": there.is_dir() and os.access(there, os.W_OK),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]


def _quota() -> int | None:
    """Return the whole cores that a container may use; None: as many as there are."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no container, or "max"
        return None


def system() -> str:
    """Return the operating system and Python's build."""
    return f"{platform.system()} {platform.release()}, {sys.implementation.name}"
