"""``experiment=privacy`` and ``privacy_many``: every client has images in each of their sizes."""

import pytest

from experiments.settings import composed
from fedpgp.build import split_configured

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("experiment", "clients"), [("privacy", 24), ("privacy_many", 200), ("privacy_many", 1000)]
)
def test_every_client_has_images(experiment, clients, seed):
    words = [f"experiment={experiment}", f"clients={clients}", f"seed={seed}"]
    split = split_configured(composed(words))
    assert len(split.clients) == clients
    assert min(len(own.train) for own in split.clients) > 0
    assert min(len(own.test) for own in split.clients) > 0
