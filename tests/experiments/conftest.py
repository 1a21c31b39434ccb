"""What several tests of the commands use."""

import functools

import pytest

import experiments.runner
from tests.helpers.small import small_federation


@pytest.fixture
def small(monkeypatch):
    """The command on the small federation."""
    for verb in ("start", "resume"):
        function = getattr(experiments.runner, verb)
        monkeypatch.setattr(
            experiments.runner, verb, functools.partial(function, federation_of=small_federation)
        )
