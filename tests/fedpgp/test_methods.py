"""What holds for every method."""

from dataclasses import fields
from pathlib import Path

import pytest

from fedpgp.errors import FedPGPError
from fedpgp.methods import METHODS


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.learns])
def test_every_learning_method_is_written_out(name):
    """Its test holds its equations, and compares loss and gradients with them."""
    path = Path(__file__).parent / "methods" / f"test_{name}.py"
    assert path.exists(), f"write {path} (docs/add_a_method.md)"
    assert "check_gradients(" in path.read_text(), path


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_another_kind_are_refused(name):
    for field in fields(METHODS[name].Settings):
        for wrong in ("perhaps", [1]):
            with pytest.raises(FedPGPError, match=f"method.{field.name}"):
                METHODS[name].Settings(**{field.name: wrong})
