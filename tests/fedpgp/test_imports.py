"""The science knows nothing of Flower, Ray or Hydra, and arrows between the rooms go one way."""

import ast
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
