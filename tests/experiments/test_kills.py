"""A few kills at random moments; python -m tests.helpers.kills does many, and prints the table."""

import pytest

from tests.helpers.kills import main


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simulation", "server", "node"])
def test_nothing_is_lost(kind):
    assert main([f"--{kind}", "2"]) == 0
