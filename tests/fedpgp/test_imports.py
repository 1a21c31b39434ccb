"""The science knows nothing of Flower, Ray or Hydra, and arrows between the rooms go one way."""

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "fedpgp": {"flwr", "ray", "hydra", "omegaconf", "strategies", "clients", "experiments"},
    "strategies": {"experiments", "hydra", "omegaconf"},
    "clients": {"experiments", "strategies", "hydra", "omegaconf"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_file_imports_what_its_room_may_not_know(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[room], path


def test_importing_everything_in_fedpgp_loads_no_framework():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "fedpgp").rglob("*.py")
    ]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "bad = {'flwr', 'ray', 'hydra', 'omegaconf'} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_mends_torchvision_is_imported_before_open_clip():
    """Else the first import of open_clip in a process decides whether a CPU build of torch can have it."""
    late = []
    for path in (ROOT / "fedpgp").rglob("*.py"):
        mended = top = False  # top: by the whole file, not by the function alone
        for line in path.read_text().splitlines():
            mended |= "import fedpgp._torchvision" in line
            if line.startswith("    def ") or line.startswith("def "):
                mended &= top
            top |= line.startswith("import fedpgp._torchvision")
            if line.strip().startswith(("import open_clip", "from open_clip")) and not mended:
                late.append(f"{path.name}: {line.strip()}")
    assert not late


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_freed_memory_is_kept_for_the_next_step():
    script = """
import ctypes, resource
import {package}
libc, size = ctypes.CDLL(None), ctypes.c_size_t(20_000_000)
libc.malloc.restype = ctypes.c_void_p
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [ctypes.c_void_p(libc.malloc(size)) for _ in range(10)]
    for block in blocks:
        ctypes.memset(block, 1, size.value)
    while blocks:
        libc.free(blocks.pop())
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = {
        package: int(
            subprocess.run(
                [sys.executable, "-c", script.format(package=package)],
                env=environment | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for package in ("fedpgp", "math")
    }
    assert faults["fedpgp"] < 1000 < 40_000 < faults["math"], faults  # pages of 4 KiB
