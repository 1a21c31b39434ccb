"""The science knows nothing of Flower, Ray or Hydra; imports between folders and files go one
way."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "fedpgp": {"flwr", "ray", "hydra", "omegaconf", "strategies", "clients", "experiments"},
    "strategies": {"experiments", "hydra", "omegaconf"},
    "clients": {"experiments", "strategies", "hydra", "omegaconf"},
}
PACKAGES = ("fedpgp", "clients", "strategies", "experiments")


@cache
def imported(source: str, module: str = "", package: bool = False) -> set[str]:
    """Names that a file imports anywhere: in functions and under TYPE_CHECKING too.

    Args:
        source: text of the file.
        module: its dotted name, for relative imports.
        package: whether it is a package's ``__init__``.

    Returns:
        dotted names; ``from a import b`` gives ``a.b``, whether ``b`` is a module or not.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = (
                module.split(".")[: len(module.split(".")) - node.level + package]
                if node.level
                else []
            )
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@cache
def sources() -> dict[str, tuple[str, bool]]:
    """Module -> text and whether it is a package's ``__init__``."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(), path.name == "__init__.py"
    return found


def circle(files: Mapping[str, tuple[str, bool]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end;
    empty where there is none."""
    edges = {}
    for module, (source, package) in files.items():
        names = imported(source, module, package)
        targets = {name if name in files else name.rpartition(".")[0] for name in names}
        edges[module] = targets & files.keys() - {module}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circle_between_files():
    files = sources()
    assert len(files) > 100
    assert not circle(files)


@pytest.mark.parametrize(
    "second",
    [
        "import a.one",
        "def late():\n    from a import one",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.one import Thing",
        "from .one import Thing",
        "from . import one",
    ],
)
def test_a_circle_is_found_wherever_it_hides(second):
    files = {"a": ("", True), "a.one": ("from a.two import other", False), "a.two": (second, False)}
    assert set(circle(files)) == {"a.one", "a.two"}
    assert not circle({**files, "a.two": ("import a.three", False)})


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_what_its_package_may_not_know(package):
    files = {name: file for name, file in sources().items() if name.partition(".")[0] == package}
    assert files
    for module, file in files.items():
        roots = {name.partition(".")[0] for name in imported(file[0], module, file[1])}
        assert not roots & FORBIDDEN[package], module


def test_importing_everything_in_fedpgp_loads_no_framework_and_changes_nothing():
    """Nor does it load open_clip, or set the process's environment: a command does, or
    whoever builds a model."""
    code = f"""
import importlib, os, sys, threading
before = dict(os.environ)
for module in {sorted(name for name in sources() if name.partition(".")[0] == "fedpgp")!r}:
    importlib.import_module(module)
bad = {{'flwr', 'ray', 'hydra', 'omegaconf', 'open_clip', 'torchvision'}} & set(sys.modules)
assert not bad, bad
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert threading.active_count() == 1, threading.enumerate()
"""
    subprocess.run([sys.executable, "-"], input=code, text=True, check=True, cwd=ROOT)


def test_no_file_does_anything_when_it_is_imported():
    """It defines and registers. Beside docstrings, no statement of a module is an expression, or
    writes the environment."""
    found = []
    for module, (source, _) in sources().items():
        statements = list(ast.parse(source).body)
        while statements:
            node = statements.pop()
            if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
                if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
                    continue
                statements += [
                    child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
                ]
            expression = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
            writes = isinstance(
                node, ast.Assign | ast.AugAssign | ast.Delete
            ) and "environ" in ast.unparse(node)
            registers = ast.unparse(node).startswith("register(")
            if (expression and not registers) or writes:
                found.append(f"{module}: {ast.unparse(node)}")
    assert not found


def test_torchvision_is_fixed_before_anything_imports_it():
    """Else the first import of open_clip in a process decides whether a CPU build of torch can have
    it."""
    late = []
    for module, (source, _) in sources().items():
        if module == "fedpgp.clip.torchvision_fix":
            continue
        tree = ast.parse(source)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            roots = {name.partition(".")[0] for name in imported(ast.unparse(node))}
            if not roots & {"open_clip", "timm", "torchvision"}:
                continue
            around = [function for function in functions if node in ast.walk(function)]
            calls = [
                call
                for function in around
                for call in ast.walk(function)
                if isinstance(call, ast.Call)
            ]
            fixes = [
                call
                for call in calls
                if ast.unparse(call) in ("fix_torchvision()", "import_open_clip()")
            ]
            if not any(call.lineno < node.lineno for call in fixes):
                late.append(f"{module}: {ast.unparse(node)}")
    assert not late
