"""Libraries are used by their public names: nothing private is imported, called or replaced.

What a library does not promise may change with any release, and did: a simulation once replaced
functions of Flower and Ray.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"fedpgp", "strategies", "clients", "experiments", "tests", "tools", "conf"}
HERE = Path(__file__).resolve()
FILES = [
    path
    for folder in sorted(OURS)
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != HERE
]
ALLOWED = {
    # The softmax's backward pass from its output alone: autograd would keep the input too.
    "torch._softmax_backward_data",
}
LIBRARIES = {"ray", "flwr", "hydra", "torch", "torchvision", "open_clip"}
SETTINGS = {
    # Attributes that the library offers to be set.
    "TaskIdentity.run_id",
    "TaskIdentity.task_id",
    "TaskIdentity.node_id",
}


def foreign(module: str) -> bool:
    top = module.partition(".")[0]
    return top not in OURS and top not in sys.stdlib_module_names and top != "__future__"


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def found(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where a file takes a library's private name, or sets an attribute of a library's object."""
    names: set[str] = set()  # of this file, that a library's module, class or function stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if foreign(alias.name):
                    names.add(alias.asname or alias.name.partition(".")[0])
                    if any(map(private, alias.name.split("."))):
                        yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and foreign(node.module):
            names |= {alias.asname or alias.name for alias in node.names}
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if any(map(private, whole.split("."))):
                    yield node.lineno, whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if root(node) not in names:
                continue
            whole = ast.unparse(node)
            if private(node.attr) and whole not in ALLOWED:
                yield node.lineno, whole
            if isinstance(node.ctx, ast.Store | ast.Del) and whole not in SETTINGS:
                yield node.lineno, f"{whole} = …"
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if ".__dict__" in ast.unparse(node.value):
                yield node.lineno, f"{ast.unparse(node)} = …"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "setattr" and root(node.args[0]) in names:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and names_a_module(node.value):
            yield node.lineno, node.value  # import_module("…"), sys.modules["…"]


def names_a_module(text: object) -> bool:
    """Whether a text is the name of a library's private module."""
    words = text.split(".") if isinstance(text, str) else []
    return bool(words) and words[0] in LIBRARIES and any(map(private, words))


def root(node: ast.AST) -> str:
    """The name that ``a.b.c`` begins with; "" of anything else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_no_private_name_of_a_library_is_used():
    said = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in FILES
        for line, what in found(ast.parse(path.read_text()))
    ]
    assert not said, "\n".join(said)


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.worker",
        "from ray._raylet import Config",
        "from flwr.superlink.cli.flower_superlink import _parse",
        "import sys\nsys.modules['ray._raylet']",
        "import ray\nray._private.worker",
        "import flwr.simulation.run_simulation as r\nr.worker = print",
        "from flwr.app import Message\nMessage.reply = print",
        "from flwr.app import Message\nsetattr(Message, 'reply', print)",
        "m.metadata.__dict__['_message_id'] = ''",
    ],
)
def test_what_it_finds(code):
    assert list(found(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from fedpgp.clip.loading import _silent\nfedpgp.clip._x",
        "from flwr.supercore.task_identity import TaskIdentity\nTaskIdentity.run_id = 1",
        "self._x = torch.ones(1)\nself.x.__dict__",
        "import os\nos._exit(1)",
    ],
)
def test_what_it_lets_pass(code):
    assert not list(found(ast.parse(code)))
