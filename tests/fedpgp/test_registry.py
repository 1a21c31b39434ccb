"""A folder's files register their own, and are imported when somebody first looks."""

import sys

import pytest

from fedpgp.errors import FedPGPError
from fedpgp.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of files (name -> text) beside its ``base``; returns its registry."""

    def make(name: str, base: str = "", **files: str) -> Registry:
        folder = tmp_path / name
        folder.mkdir()
        start = "from fedpgp.registry import Registry\n"
        texts = {"__init__": "", "base": f"{start}THINGS = Registry('{name}'{base})\n", **files}
        for file, text in texts.items():
            (folder / f"{file}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return __import__(f"{name}.base", fromlist=["THINGS"]).THINGS

    return make


def registering(package: str, name: str, thing: str = "Thing") -> str:
    return f"""
from {package}.base import THINGS

@THINGS.register({name!r})
class {thing}:
    '''One.'''
"""


def test_a_new_file_is_found_and_nothing_is_imported_before(package):
    things = package("found", second=registering("found", "b"), first=registering("found", "a"))
    assert "found.first" not in sys.modules
    assert list(things) == ["a", "b"] and things["b"].__module__ == "found.second"
    assert ["a"] not in things  # what a configuration may hold in a name's place
    assert not hasattr(things["a"], "name")
    assert "c" not in things and len(things) == 2


def test_two_of_one_name_are_refused(package):
    things = package("twice", a=registering("twice", "mine"), b=registering("twice", "mine"))
    with pytest.raises(TypeError, match="twice.a.Thing and twice.b.Thing are both named 'mine'"):
        things["mine"]


def test_a_class_gets_its_name_and_a_stranger_is_refused(package):
    things = package("based", base=", dict")
    assert things.register("ok")(type("Ok", (dict,), {})).name == "ok"
    with pytest.raises(TypeError, match="List is no class that derives from dict"):
        things.register("list")(type("List", (list,), {}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nimport nowhere", r"ModuleNotFoundError: No module named 'nowhere' .*:2\)"),
        ("def loss(self)\n    pass", r"SyntaxError: expected ':' .*bad.py:1\)"),
        ("x = torch.ones(1)", r"NameError: name 'torch' is not defined .*bad.py:1\)"),
    ],
)
def test_a_file_that_cannot_be_imported_says_so_every_time(package, text, said):
    name = f"broken{len(text)}"
    things = package(name, bad=text)
    for _ in range(2):
        with pytest.raises(FedPGPError, match=f"{name}.bad cannot be imported: {said}"):
            list(things)
