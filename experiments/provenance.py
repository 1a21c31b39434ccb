"""What a run is made with: the versions of the packages, the commit of this code, the processor."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = (
    "fedpgp",
    "torch",
    "torchvision",
    "open_clip_torch",
    "flwr",
    "ray",
    "hydra-core",
    "numpy",
    "safetensors",
)
PROVENANCE = ("versions", "git_commit", "machine")
"""Keys of config.yaml that say it."""


def provenance() -> dict:
    """Return ``versions`` (package -> version), ``git_commit`` and ``machine`` (``system``,
    ``processor`` and the instructions that torch uses of it) of this process."""
    return {"versions": _versions(), "git_commit": _git_commit(), "machine": _machine()}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """Return the commit of this code, with "+changes" when files differ from it; None outside a git
    checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changes = subprocess.run(
            status, cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _machine() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    """Return the processor's model, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
