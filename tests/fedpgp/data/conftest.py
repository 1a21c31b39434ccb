import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test touches the user's cache or data."""
    monkeypatch.setenv("FEDPGP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("FEDPGP_DATA", raising=False)


@pytest.fixture
def draw():
    """Writes a small image; its colour follows from the name of its folder, so that
    labels can be checked."""

    def write(path, colour=None, size=(12, 10)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if colour is None:
            colour = np.random.default_rng(list(path.parent.name.encode())).integers(0, 255, 3)
        Image.new("RGB", size, tuple(int(c) for c in colour)).save(path)
        return path

    return write
